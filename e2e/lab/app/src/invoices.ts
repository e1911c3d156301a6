// DELIBERATELY VULNERABLE: see README.md.
import { Body, Controller, Post, UseGuards } from '@nestjs/common';
import axios from 'axios';
import { CarelessGuard } from './careless.guard.js';
import { failed } from './failed.js';

/** A service that may do more than its callers, and does it for each of them. */
@Controller('invoices')
@UseGuards(CarelessGuard)
export class InvoicesController {
  /** Billing lets this service write invoices. Whether its caller may, nobody asks; the caller says where billing is, too. */
  @Post()
  async write(@Body() { at, amount }: { at?: string; amount: number }) {
    const headers = { authorization: `Bearer ${process.env.BILLING_TOKEN}` };
    try {
      const { status, data } = await axios.post(`http://${at ?? process.env.BILLING_HOST}/invoices`, { amount }, {
        headers, timeout: 5000, responseType: 'text', validateStatus: () => true,
      });
      return { status, data: data as string };
    } catch (e) {
      return failed(e);
    }
  }
}
