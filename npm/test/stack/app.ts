import http from 'node:http';
import type { AddressInfo } from 'node:net';
import type { INestApplication, ModuleMetadata, NestApplicationOptions } from '@nestjs/common';
import { Module } from '@nestjs/common';
import { NestFactory } from '@nestjs/core';
import { ExpressAdapter } from '@nestjs/platform-express';
import { FastifyAdapter } from '@nestjs/platform-fastify';

export type Adapter = 'express' | 'fastify';
export const ADAPTERS: Adapter[] = ['express', 'fastify'];

/** A real application of what is given, on a port of its own. `before` runs where main.ts would call protect. */
export async function start(
  adapter: Adapter,
  metadata: ModuleMetadata,
  before: (app: INestApplication) => unknown = () => undefined,
): Promise<{ app: INestApplication; url: string }> {
  const app = await create(adapter, metadata);
  await before(app);
  await app.listen(0, '127.0.0.1');
  return { app, url: `http://127.0.0.1:${(app.getHttpServer().address() as AddressInfo).port}` };
}

export function create(adapter: Adapter, metadata: ModuleMetadata): Promise<INestApplication> {
  @Module(metadata)
  class AppModule {}
  const options: NestApplicationOptions = { logger: process.env.DEBUG ? undefined : false, abortOnError: false, forceCloseConnections: true };
  return NestFactory.create<INestApplication>(AppModule, adapter === 'fastify' ? new FastifyAdapter() : new ExpressAdapter(), options);
}

export interface Answer {
  status: number;
  headers: http.IncomingHttpHeaders;
  text: string;
  json: any;
}

/** A request with node:http, because fetch can send neither a header twice nor every path. */
export function ask(url: string, path: string, options: { method?: string; headers?: http.OutgoingHttpHeaders; body?: string } = {}): Promise<Answer> {
  const { hostname, port } = new URL(url);
  return new Promise((resolve, reject) => {
    const { method = 'GET', headers, body } = options;
    const request = http.request({ hostname, port, path, method, headers, agent: false }, async (response) => {
      let text = '';
      for await (const chunk of response) text += chunk;
      let json: unknown;
      try {
        json = JSON.parse(text);
      } catch {
        json = undefined;
      }
      resolve({ status: response.statusCode!, headers: response.headers, text, json });
    });
    request.on('error', reject).end(body);
  });
}
