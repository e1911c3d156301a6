import { ApiProperty, ApiPropertyOptional } from '@nestjs/swagger';
import { Type } from 'class-transformer';
import {
  ArrayMaxSize, ArrayMinSize, IsArray, IsIn, IsInt, IsOptional, IsString, Length, Max, Min, ValidateNested,
} from 'class-validator';

/** What is sold: cents by article. A client names articles, never prices. */
export const PRICES: Readonly<Record<string, number>> = { 'TEA-100': 450, 'CUP-001': 1290, 'POT-002': 3900 };

export class OrderItem {
  @ApiProperty({ enum: Object.keys(PRICES) })
  @IsIn(Object.keys(PRICES))
  article: string;

  @ApiProperty({ minimum: 1, maximum: 1000 })
  @IsInt()
  @Min(1)
  @Max(1000)
  quantity: number;
}

export class NewOrder {
  @ApiProperty({ example: 'Ada' })
  @IsString()
  @Length(1, 80)
  customer: string;

  @ApiProperty({ type: [OrderItem] })
  @IsArray()
  @ArrayMinSize(1)
  @ArrayMaxSize(50)
  @ValidateNested({ each: true })
  @Type(() => OrderItem)
  items: OrderItem[];
}

export class OrderFilter {
  @ApiPropertyOptional({ enum: ['open', 'shipped'] })
  @IsOptional()
  @IsIn(['open', 'shipped'])
  status?: 'open' | 'shipped';
}

export class Order extends NewOrder {
  @ApiProperty({ example: 'o-1001' })
  id: string;

  @ApiProperty({ enum: ['open', 'shipped'] })
  status: 'open' | 'shipped';

  @ApiProperty({ description: 'in cents' })
  total: number;

  @ApiProperty({ description: 'the subject or client that placed it' })
  placedBy: string;
}

export interface OrderEvent {
  type: 'created' | 'deleted';
  order: Order;
}
