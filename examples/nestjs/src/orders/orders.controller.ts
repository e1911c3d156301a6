import { Body, Controller, Delete, Get, HttpCode, Logger, Param, Post, Query, Sse, type MessageEvent } from '@nestjs/common';
import { ApiBearerAuth, ApiTags } from '@nestjs/swagger';
import { map, type Observable } from 'rxjs';
import type { Identity } from '../caller/assertion.js';
import { Caller, Roles, Scopes } from '../caller/decorators.js';
import { NewOrder, Order, OrderFilter } from './order.js';
import { OrdersService } from './orders.service.js';

@ApiTags('orders')
@ApiBearerAuth()
@Controller('orders')
export class OrdersController {
  private readonly log = new Logger(OrdersController.name);

  constructor(private readonly orders: OrdersService) {}

  @Get()
  @Scopes('orders:read')
  list(@Query() { status }: OrderFilter): Order[] {
    return this.orders.list(status);
  }

  @Sse('events')
  @Scopes('orders:read')
  events(): Observable<MessageEvent> {
    return this.orders.events.pipe(map(({ type, order }) => ({ type, data: order })));
  }

  @Get(':id')
  @Scopes('orders:read')
  get(@Param('id') id: string): Order {
    return this.orders.get(id);
  }

  @Post()
  @Scopes('orders:write')
  create(@Body() order: NewOrder, @Caller() caller: Identity): Order {
    const created = this.orders.create(order, caller.subject ?? caller.client ?? caller.issuer);
    this.log.log({ created: created.id, by: created.placedBy, request: caller.requestId });
    return created;
  }

  @Delete(':id')
  @HttpCode(204)
  @Scopes('orders:admin')
  @Roles('orders-admin')
  delete(@Param('id') id: string, @Caller() caller: Identity): void {
    this.orders.delete(id);
    this.log.log({ deleted: id, by: caller.subject, request: caller.requestId });
  }
}
