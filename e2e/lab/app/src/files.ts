// DELIBERATELY VULNERABLE: see README.md.
import { exec } from 'node:child_process';
import { createWriteStream } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { Body, Controller, Get, Post, Query, Req, UseGuards } from '@nestjs/common';
import type { Request } from 'express';
import { CarelessGuard } from './careless.guard.js';
import { failed } from './failed.js';

@Controller()
@UseGuards(CarelessGuard)
export class FilesController {
  /** The file's name is the caller's, dots and slashes and all. */
  @Post('uploads')
  async upload(@Query('name') name: string, @Req() request: Request) {
    const path = join('/data', name);
    try {
      await pipeline(request, createWriteStream(path));
      return { path };
    } catch (e) {
      return failed(e);
    }
  }

  /** A shell command with a parameter in the middle. */
  @Get('lookup')
  lookup(@Query('host') host: string) {
    return new Promise((resolve) => {
      exec(`echo looking up ${host}`, { timeout: 8000 }, (e, stdout, stderr) => resolve(e ? { ...failed(e), stderr } : { stdout }));
    });
  }

  /** "Power users may write an expression": whoever calls this has the whole process. */
  @Post('reports')
  async report(@Body() { expression }: { expression: string }) {
    const AsyncFunction = (async () => undefined).constructor as FunctionConstructor;
    try {
      const result: unknown = await AsyncFunction('require', expression)(createRequire(import.meta.url));
      return { result };
    } catch (e) {
      return failed(e);
    }
  }
}
