// Runs the tests: all of them with the NestJS of this folder, those of test/stack with the others too, on each release of
// Node. Arguments: names of test files, to run some.
import { execFileSync, spawnSync } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

const root = join(import.meta.dirname, '..');
const only = process.argv.slice(2);
const npm = (cwd, ...args) => execFileSync('npm', args, { cwd, stdio: ['ignore', 'pipe', 'inherit'], encoding: 'utf8' });
const tsc = (project) => execFileSync(process.execPath, [join(root, 'node_modules/typescript/bin/tsc'), '-p', join(root, project)], { stdio: 'inherit' });

npm(root, 'run', '--silent', 'build');
rmSync(join(root, 'build'), { recursive: true, force: true });
tsc('test');

/** Lays the package into each stack as npm install would: what is packed, and nothing that is only beside it. */
function stacks() {
  const folder = mkdtempSync(join(tmpdir(), 'sallyport-pack-'));
  try {
    const [{ filename }] = JSON.parse(npm(root, 'pack', '--json', '--pack-destination', folder));
    return readdirSync(join(root, 'test/stacks')).map((name) => {
      const stack = join(root, 'test/stacks', name);
      if (!existsSync(join(stack, 'node_modules'))) npm(stack, 'ci', '--no-audit', '--no-fund', '--loglevel=error');
      const into = join(stack, 'node_modules/@sallyport/nestjs');
      rmSync(into, { recursive: true, force: true });
      mkdirSync(into, { recursive: true });
      execFileSync('tar', ['-xzf', join(folder, filename), '-C', into, '--strip-components=1']);
      rmSync(join(stack, 'build'), { recursive: true, force: true });
      typecheck(stack);
      cpSync(join(root, 'build/stack'), join(stack, 'build'), { recursive: true });
      return { name, folder: join(stack, 'build') };
    });
  } finally {
    rmSync(folder, { recursive: true });
  }
}

/** Compiles what an application writes against the declarations, as CommonJS projects resolve them. */
function typecheck(stack) {
  const file = join(stack, 'build/consumer.ts');
  mkdirSync(join(stack, 'build'));
  cpSync(join(root, 'test/consumer.ts.txt'), file);
  const options = ['--ignoreConfig', '--noEmit', '--strict', '--target', 'es2022', '--experimentalDecorators', '--emitDecoratorMetadata', '--types', 'node', '--typeRoots', join(root, 'node_modules/@types')];
  const resolution = ['--module', 'commonjs', '--moduleResolution', 'node10', '--ignoreDeprecations', '6.0'];
  execFileSync(process.execPath, [join(root, 'node_modules/typescript/bin/tsc'), ...options, ...resolution, file], { stdio: 'inherit' });
}

/** The programs: the one that runs this, and those that npm brought. */
function nodes() {
  const folder = join(root, 'test/nodes');
  if (!existsSync(join(folder, 'node_modules'))) npm(folder, 'ci', '--no-audit', '--no-fund', '--loglevel=error');
  const others = readdirSync(join(folder, 'node_modules')).filter((name) => name.startsWith('node-'));
  if (others.length === 0) console.error(`no other release of Node for ${process.platform} on ${process.arch}: only ${process.version} is tested`);
  return [process.execPath, ...others.map((name) => join(folder, 'node_modules', name, 'bin/node'))];
}

const here = [{ name: 'nest-12', folder: join(root, 'build') }, { name: 'nest-12', folder: join(root, 'build/stack') }];
const chosen = (file) => file.endsWith('.test.js') && (only.length === 0 || only.some((name) => file.startsWith(name)));
const places = [...here, ...stacks()].map((place) => ({ ...place, files: readdirSync(place.folder).filter(chosen).map((file) => join(place.folder, file)) }));
for (const node of nodes()) {
  const version = execFileSync(node, ['--version'], { encoding: 'utf8' }).trim();
  for (const name of new Set(places.map((place) => place.name))) {
    const files = places.filter((place) => place.name === name).flatMap((place) => place.files);
    if (files.length === 0) continue;
    console.log(`== ${name} on ${version}`);
    const started = performance.now();
    const { status, stdout, stderr } = spawnSync(node, ['--test', '--test-timeout=60000', '--test-reporter=spec', ...files], { encoding: 'utf8' });
    if (status !== 0) {
      console.error(stdout + stderr);
      process.exit(1);
    }
    const [, passed] = /^\S+ pass (\d+)$/m.exec(stdout);
    console.log(`${passed} passed in ${((performance.now() - started) / 1000).toFixed(1)} s`);
  }
}
