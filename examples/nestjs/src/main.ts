import { createApp, listen } from './app.js';
import { readSettings } from './settings.js';

try {
  const settings = readSettings(process.env, process.argv.slice(2));
  const app = await createApp(settings);
  const address = await listen(app, settings);
  console.log(JSON.stringify({ level: 'log', timestamp: Date.now(), message: `listening on ${address} (${settings.adapter})` }));
} catch (error) {
  console.error(JSON.stringify({ level: 'fatal', timestamp: Date.now(), message: (error as Error).message }));
  process.exit(1);
}
