// DELIBERATELY VULNERABLE: see README.md.
import { Controller, Get, UseGuards } from '@nestjs/common';
import { CarelessGuard } from './careless.guard.js';

/** What only the right callers should see. The lab puts a value here that nobody can guess. */
export const canary = (): string => process.env.ORDERS_CANARY ?? 'none';

@Controller('orders')
export class OrdersController {
  @Get()
  @UseGuards(CarelessGuard)
  list() {
    return { orders: [{ id: 1, note: canary() }] };
  }
}
