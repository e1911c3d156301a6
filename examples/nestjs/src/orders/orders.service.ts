import { Injectable, type OnModuleDestroy } from '@nestjs/common';
import { Subject, type Observable } from 'rxjs';
import { notFound } from '../problem.js';
import { PRICES, type NewOrder, type Order, type OrderEvent } from './order.js';

/** Orders in memory, and what happens to them. */
@Injectable()
export class OrdersService implements OnModuleDestroy {
  private readonly orders = new Map<string, Order>();
  private readonly happened = new Subject<OrderEvent>();
  private last = 1000;
  readonly events: Observable<OrderEvent> = this.happened.asObservable();

  constructor() {
    this.create({ customer: 'Ada', items: [{ article: 'TEA-100', quantity: 2 }] }, 'seed');
    this.create({ customer: 'Grace', items: [{ article: 'POT-002', quantity: 1 }] }, 'seed').status = 'shipped';
  }

  list(status?: Order['status']): Order[] {
    return [...this.orders.values()].filter((order) => !status || order.status === status);
  }

  get(id: string): Order {
    const order = this.orders.get(id);
    if (!order) throw notFound();
    return order;
  }

  create({ customer, items }: NewOrder, placedBy: string): Order {
    const total = items.reduce((sum, item) => sum + PRICES[item.article]! * item.quantity, 0);
    const order: Order = { id: `o-${++this.last}`, customer, items, status: 'open', total, placedBy };
    this.orders.set(order.id, order);
    this.happened.next({ type: 'created', order });
    return order;
  }

  delete(id: string): void {
    const order = this.get(id);
    this.orders.delete(id);
    this.happened.next({ type: 'deleted', order });
  }

  /** Ends the event streams, for which the server would wait at shutdown. */
  onModuleDestroy(): void {
    this.happened.complete();
  }
}
