// DELIBERATELY VULNERABLE: see README.md.
import { Controller } from '@nestjs/common';
import { MessagePattern } from '@nestjs/microservices';
import { SubscribeMessage, WebSocketGateway } from '@nestjs/websockets';
import { canary } from './orders.js';

/** Guards of controllers do not run here. */
@WebSocketGateway({ path: '/ws' })
export class EventsGateway {
  @SubscribeMessage('orders')
  orders() {
    return { event: 'orders', data: canary() };
  }
}

/** For the other services of the cluster, which are all trusted. */
@Controller()
export class ExportController {
  @MessagePattern('orders.export')
  export(): string {
    return canary();
  }
}
