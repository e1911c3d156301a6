// DELIBERATELY VULNERABLE: see README.md.
import { lookup } from 'node:dns/promises';
import { BadRequestException, Body, Controller, Get, Post, Query, Req, UseGuards } from '@nestjs/common';
import axios, { type AxiosRequestConfig } from 'axios';
import type { Request } from 'express';
import { CarelessGuard } from './careless.guard.js';
import { failed } from './failed.js';

async function fetched(config: AxiosRequestConfig) {
  try {
    const { status, data } = await axios({ timeout: 5000, responseType: 'text', validateStatus: () => true, ...config });
    return { status, data: data as string };
  } catch (e) {
    return failed(e);
  }
}

@Controller('preview')
@UseGuards(CarelessGuard)
export class FetchController {
  /** The body is the HTTP client's configuration: socketPath, proxy, headers, everything. */
  @Post()
  preview(@Body() config: AxiosRequestConfig) {
    return fetched(config);
  }

  /** Looks the name up, refuses what is internal, and lets the client look it up once more. */
  @Post('checked')
  async checked(@Body() { url }: { url: string }) {
    const { address } = await lookup(new URL(url).hostname, 4).catch((e: { code: string }) => ({ address: e.code }));
    if (/^(127|169\.254)\./.test(address)) throw new BadRequestException('internal address');
    return { checked: address, ...(await fetched({ url })) };
  }

  /** Calls a partner in the caller's name. */
  @Get('as-me')
  asMe(@Query('url') url: string, @Req() request: Request) {
    return fetched({ url, headers: { authorization: request.headers.authorization } });
  }
}
