import { BadGatewayException, Controller, Get, Inject, Logger, Query, ServiceUnavailableException } from '@nestjs/common';
import { ApiBearerAuth, ApiTags } from '@nestjs/swagger';
import { Matches } from 'class-validator';
import { Scopes } from './caller/decorators.js';
import { SETTINGS, type Settings } from './settings.js';

class RatesQuery {
  @Matches(/^[A-Z]{3}$/)
  base: string;
}

/** Asks another service. The address is the operator's; the caller chooses a currency and nothing else. */
@ApiTags('rates')
@ApiBearerAuth()
@Controller('rates')
export class RatesController {
  private readonly log = new Logger(RatesController.name);

  constructor(@Inject(SETTINGS) private readonly settings: Settings) {}

  @Get()
  @Scopes('orders:read')
  async rates(@Query() { base }: RatesQuery): Promise<unknown> {
    if (!this.settings.ratesUrl) throw new ServiceUnavailableException('no service for rates is configured');
    const url = new URL(this.settings.ratesUrl);
    url.searchParams.set('base', base);
    try {
      const response = await fetch(url, { redirect: 'error', signal: AbortSignal.timeout(3_000) });
      if (!response.ok) throw new Error(`the service for rates answered ${response.status}`);
      return await response.json();
    } catch (error) {
      this.log.error(`ask for rates: ${(error as Error).message}`);
      throw new BadGatewayException('the service for rates gave no answer');
    }
  }
}
