/** What SallyportModule is told. What is left out is taken from the environment that `sallyport run` gives. */
export interface SallyportOptions {
  /** The name of the sallyport in front, its `assertion.issuer`. Default: SALLYPORT_ISSUER. */
  issuer?: string;
  /** This service, `assertion.audience`. Default: SALLYPORT_AUDIENCE. */
  audience?: string;
  /** `assertion.trust_domain`. Default: SALLYPORT_TRUST_DOMAIN, then the audience. */
  trustDomain?: string;
  /** The header that carries the assertion. Default: SALLYPORT_HEADER, then Txn-Token. */
  header?: string;
  /** The file in which sallyport publishes its keys. Default: SALLYPORT_JWKS_FILE. */
  jwksFile?: string;
  /** What a handler that declares nothing is open to: any verified caller (default), or nobody. */
  undeclared?: 'caller' | 'nobody';
}

/** The options, complete. */
export interface Settings {
  issuer: string;
  audience: string;
  trustDomain: string;
  header: string;
  jwksFile: string;
  undeclared: 'caller' | 'nobody';
}

/** Completes the options. It throws one error that names every fault: nothing starts half configured, and so open. */
export function readOptions(options: SallyportOptions, env: NodeJS.ProcessEnv): Settings {
  const faults: string[] = [];
  const read = (name: keyof SallyportOptions, variable: string, fallback?: string): string => {
    const value = options[name] ?? (env[variable] || fallback);
    if (typeof value === 'string' && value.trim() !== '') return value;
    faults.push(options[name] === undefined ? `neither ${name} nor ${variable} is set` : `${name} is empty`);
    return '';
  };
  const audience = read('audience', 'SALLYPORT_AUDIENCE');
  const settings: Settings = {
    issuer: read('issuer', 'SALLYPORT_ISSUER'),
    audience,
    trustDomain: read('trustDomain', 'SALLYPORT_TRUST_DOMAIN', audience || 'reported above'),
    header: read('header', 'SALLYPORT_HEADER', 'Txn-Token').toLowerCase(),
    jwksFile: read('jwksFile', 'SALLYPORT_JWKS_FILE'),
    undeclared: options.undeclared ?? 'caller',
  };
  if (settings.header && !/^[a-z0-9!#$%&'*+.^_`|~-]+$/.test(settings.header)) faults.push('header is not a header name');
  if (!['caller', 'nobody'].includes(settings.undeclared)) faults.push('undeclared is neither "caller" nor "nobody"');
  if (faults.length > 0) {
    throw new Error(`SallyportModule: ${faults.join('; ')} (sallyport run sets the variables; see assertion in sallyport.yaml)`);
  }
  return settings;
}
