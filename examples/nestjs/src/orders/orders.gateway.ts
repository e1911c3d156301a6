import { UseFilters, type OnModuleDestroy } from '@nestjs/common';
import { SubscribeMessage, WebSocketGateway, WebSocketServer, type OnGatewayInit } from '@nestjs/websockets';
import type { Subscription } from 'rxjs';
import type { WebSocketServer as Server } from 'ws';
import { Scopes } from '../caller/decorators.js';
import type { GatewayOptions } from '../caller/ws.adapter.js';
import { ProblemFilter } from '../problem.js';
import { OrdersService } from './orders.service.js';

/** Pushes every order event to everyone who may read orders. */
@WebSocketGateway<GatewayOptions>({ path: '/ws', scopes: ['orders:read'] })
@UseFilters(ProblemFilter) // gateways take the global guard, but not the global filter
export class OrdersGateway implements OnGatewayInit, OnModuleDestroy {
  @WebSocketServer() private readonly server: Server;
  private pushing?: Subscription;

  constructor(private readonly orders: OrdersService) {}

  afterInit(): void {
    this.pushing = this.orders.events.subscribe(({ type, order }) => {
      const message = JSON.stringify({ event: type, data: order });
      for (const client of this.server.clients) client.send(message);
    });
  }

  /** {"event":"count"} is answered with the number of orders. */
  @SubscribeMessage('count')
  @Scopes('orders:read')
  count() {
    return { event: 'count', data: this.orders.list().length };
  }

  onModuleDestroy(): void {
    this.pushing?.unsubscribe();
    for (const client of this.server?.clients ?? []) client.close(1001);
  }
}
