import { open } from 'node:fs/promises';
import { join } from 'node:path';
import { Controller, Get, Inject, Param, Query, StreamableFile } from '@nestjs/common';
import { ApiBearerAuth, ApiTags } from '@nestjs/swagger';
import { IsString, Matches } from 'class-validator';
import { Scopes } from './caller/decorators.js';
import { forbidden, notFound } from './problem.js';
import { SETTINGS, type Settings } from './settings.js';

class InvoiceName {
  @Matches(/^[0-9]{4}-[0-9]{4}\.txt$/)
  name: string;
}

class ExportQuery {
  @IsString()
  file: string;
}

@ApiTags('invoices')
@ApiBearerAuth()
@Controller('invoices')
export class InvoicesController {
  constructor(@Inject(SETTINGS) private readonly settings: Settings) {}

  /**
   * CARELESS ON PURPOSE: it opens whatever path or address it is given. It is here to be attacked: behind sallyport's walls the
   * kernel refuses /etc/shadow to the process, whatever the code does, and the gate behind refuses what no destination names.
   * Do not copy it; the handler below is the right one.
   */
  @Get('export')
  @Scopes('orders:read')
  export(@Query() { file }: ExportQuery): Promise<StreamableFile> {
    return /^https?:/.test(file) ? fetched(file) : serve(file);
  }

  /** A name of one known form, in one folder. */
  @Get(':name')
  @Scopes('orders:read')
  download(@Param() { name }: InvoiceName): Promise<StreamableFile> {
    return serve(join(this.settings.invoices, name));
  }
}

async function fetched(url: string): Promise<StreamableFile> {
  let answer: Response;
  try {
    answer = await fetch(url, { signal: AbortSignal.timeout(5000) });
  } catch {
    throw forbidden('address_forbidden');
  }
  return new StreamableFile(Buffer.from(await answer.arrayBuffer()), { type: 'text/plain' });
}

async function serve(path: string): Promise<StreamableFile> {
  try {
    const file = await open(path);
    if ((await file.stat()).isDirectory()) {
      await file.close();
      throw notFound();
    }
    return new StreamableFile(file.createReadStream(), { type: 'text/plain', disposition: 'attachment' });
  } catch (error) {
    switch ((error as NodeJS.ErrnoException).code) {
      case 'EACCES':
      case 'EPERM':
        throw forbidden('file_forbidden');
      case 'ENOENT':
      case 'ENOTDIR':
        throw notFound();
      default:
        throw error;
    }
  }
}
