package main

import (
	"context"
	"path/filepath"

	"github.com/sallyport/sallyport/e2e/rootfs"
)

// importImage makes an image of what fill puts into it.
func (e *engine) importImage(ctx context.Context, fill func(*rootfs.FS), changes ...string) (string, error) {
	tar := rootfs.Tar(fill)
	defer tar.Close() // if the import ends early, so does who fills it
	args := []string{"import"}
	for _, c := range changes {
		args = append(args, "--change", c)
	}
	return e.run(ctx, tar, append(args, "-")...)
}

// serviceImage holds the vulnerable service as images do: Node, a shell, curl, and the two programs that stand before
// the service, of which each variant uses one.
func (l *lab) serviceImage(ctx context.Context) (string, error) {
	return l.engine.importImage(ctx, func(f *rootfs.FS) {
		f.Dir("/tmp", 0o1777)
		f.Dir("/data", 0o1777)
		f.File("/etc/passwd", 0o644, []byte("root:x:0:0:root:/:/bin/sh\n"))
		f.File("/etc/shadow", 0o600, []byte("root:"+l.secret.shadow+":1::::::\n"))
		f.Program("node", "/usr/local/bin/node")
		f.Program("sh", "/bin/sh")
		f.Program("curl", "/usr/bin/curl")
		for _, name := range []string{"sallyport", "neighbour", "init"} {
			f.Copy(l.built(name), "/usr/local/bin/"+name, 0o755)
		}
		app := filepath.Join(l.source, "app")
		f.Copy(filepath.Join(app, "package.json"), "/app/package.json", 0o644)
		f.Tree(filepath.Join(app, "dist"), "/app/dist")
		f.Tree(filepath.Join(app, "node_modules"), "/app/node_modules", "typescript", "@types") // what only the build needs stays behind
	}, "WORKDIR /app", "ENV PATH=/usr/local/bin:/usr/bin:/bin")
}

// neighbourImage holds one static program and nothing else.
func (l *lab) neighbourImage(ctx context.Context) (string, error) {
	return l.engine.importImage(ctx, func(f *rootfs.FS) {
		f.Copy(l.built("neighbour"), "/neighbour", 0o755)
	}, `ENTRYPOINT ["/neighbour"]`)
}
