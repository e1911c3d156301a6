import { createHash } from 'node:crypto';
import type { IncomingMessage } from 'node:http';
import { Controller, PayloadTooLargeException, Post, Req, UnsupportedMediaTypeException } from '@nestjs/common';
import { ApiBearerAuth, ApiConsumes, ApiTags } from '@nestjs/swagger';
import { Scopes } from './caller/decorators.js';
import { rawRequest } from './caller/caller.guard.js';

export const UPLOAD_TYPE = 'application/octet-stream';
const UPLOAD_LIMIT = 10 * 1024 * 1024; // bytes

@ApiTags('uploads')
@ApiBearerAuth()
@Controller('uploads')
export class UploadsController {
  /** Reads the body as it comes and keeps none of it. */
  @Post()
  @ApiConsumes(UPLOAD_TYPE)
  @Scopes('orders:write')
  async upload(@Req() request: IncomingMessage): Promise<{ bytes: number; sha256: string }> {
    const body = rawRequest(request);
    if (body.headers['content-type'] !== UPLOAD_TYPE) throw new UnsupportedMediaTypeException();
    const hash = createHash('sha256');
    let bytes = 0;
    // Not destroyed when it is left early, because the answer goes out by the same connection.
    for await (const chunk of body.iterator({ destroyOnReturn: false })) {
      if ((bytes += chunk.length) > UPLOAD_LIMIT) break;
      hash.update(chunk);
    }
    if (bytes > UPLOAD_LIMIT) {
      body.resume(); // the rest is thrown away, or the connection's next request would wait behind it
      throw new PayloadTooLargeException();
    }
    return { bytes, sha256: hash.digest('hex') };
  }
}
