// DELIBERATELY VULNERABLE: see README.md.

/** An error is answered with its words: whoever attacks learns what happened, and so does the lab. */
export function failed(e: unknown) {
  const { code, syscall, message } = e as { code?: string; syscall?: string; message: string };
  return { error: code ?? message, syscall, message };
}
