package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
)

// engine is the container engine that the lab may use.
type engine struct {
	socket string // of its API
	label  string // on everything that this run makes
}

// errNoEngine says that nobody has named an engine.
var errNoEngine = errors.New("SALLYPORT_TEST_DOCKER names no container engine: run scripts/with-engine build/lab, as root, with docker.io installed")

func findEngine(label string) (*engine, error) {
	host := os.Getenv("SALLYPORT_TEST_DOCKER")
	if host == "" {
		host = os.Getenv("DOCKER_HOST")
	}
	if host == "" {
		return nil, errNoEngine
	}
	socket, ok := strings.CutPrefix(host, "unix://")
	if !ok {
		return nil, fmt.Errorf("the engine %s is not on this machine: the lab shares folders with its containers", host)
	}
	return &engine{socket: socket, label: label}, nil
}

// run runs a command of the engine to its end and returns what it printed.
func (e *engine) run(ctx context.Context, stdin io.Reader, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "docker", append([]string{"-H", "unix://" + e.socket}, args...)...)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &out, &errs
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("docker %s: %w: %s", args[0], err, strings.TrimSpace(errs.String()))
	}
	return strings.TrimSpace(out.String()), nil
}

// container is what one container is started with.
type container struct {
	name, image string
	at          int  // the last number of its address in each network
	link        bool // it is in the link-local network too
	flags       []string
	command     []string
}

// start makes a container, joins it to its networks and starts it.
func (e *engine) start(ctx context.Context, c container) error {
	args := []string{"create", "--name", e.name(c.name), "--label", e.label, "--network", e.name("net"), "--ip", labAddress(c.at)}
	args = append(append(append(args, c.flags...), c.image), c.command...)
	if _, err := e.run(ctx, nil, args...); err != nil {
		return err
	}
	if c.link {
		_, err := e.run(ctx, nil, "network", "connect", "--ip", linkAddress(c.at), "--ip6", linkAddress6(c.at), e.name("link"), e.name(c.name))
		if err != nil {
			return err
		}
	}
	_, err := e.run(ctx, nil, "start", e.name(c.name))
	return err
}

// networks makes the two networks of the lab: one that any service has, and the link-local one of a cloud's metadata.
func (e *engine) networks(ctx context.Context) error {
	for _, args := range [][]string{
		{"--subnet", labAddress(0) + "/24", e.name("net")},
		{"--subnet", linkAddress(0) + "/24", "--ipv6", "--subnet", linkAddress6(0) + "/64", e.name("link")},
	} {
		if _, err := e.run(ctx, nil, append([]string{"network", "create", "--label", e.label}, args...)...); err != nil {
			return err
		}
	}
	return nil
}

func labAddress(at int) string   { return fmt.Sprintf("10.213.77.%d", at) }
func linkAddress(at int) string  { return fmt.Sprintf("169.254.169.%d", at) }
func linkAddress6(at int) string { return strings.TrimSuffix(fmt.Sprintf("fd00:ec2::%d", at), "0") }

// name is that of something of this run.
func (e *engine) name(s string) string { return strings.ReplaceAll(e.label, "=", "-") + "-" + s }

// exec starts a process in a container and leaves it alone.
func (e *engine) exec(ctx context.Context, name string, command ...string) error {
	_, err := e.run(ctx, nil, append([]string{"exec", "-d", e.name(name)}, command...)...)
	return err
}

// refusesUring reports whether the engine's own seccomp profile refuses io_uring, as Docker's does since version 25.
func (e *engine) refusesUring(ctx context.Context) bool {
	version, err := e.run(ctx, nil, "version", "--format", "{{.Server.Version}}")
	if err != nil {
		return false
	}
	major, _, _ := strings.Cut(version, ".")
	n, err := strconv.Atoi(major)
	return err == nil && n >= 25
}

func (e *engine) running(ctx context.Context, name string) bool {
	out, err := e.run(ctx, nil, "inspect", "--format", "{{.State.Running}}", e.name(name))
	return err == nil && out == "true"
}

// logs is the end of what a container has printed.
func (e *engine) logs(ctx context.Context, name string) string {
	cmd := exec.CommandContext(ctx, "docker", "-H", "unix://"+e.socket, "logs", "--tail", "40", e.name(name))
	out, _ := cmd.CombinedOutput()
	return string(out)
}

// clean removes whatever carries the label, and the images.
func (e *engine) clean(ctx context.Context, images ...string) error {
	var errs []error
	remove := func(list, rm []string) {
		out, err := e.run(ctx, nil, append(list, "--filter", "label="+e.label)...)
		if err == nil && out != "" {
			_, err = e.run(ctx, nil, append(rm, strings.Fields(out)...)...)
		}
		errs = append(errs, err)
	}
	remove([]string{"ps", "-aq"}, []string{"rm", "-f", "-v"})
	remove([]string{"network", "ls", "-q"}, []string{"network", "rm"})
	for _, image := range images {
		if image != "" {
			_, err := e.run(ctx, nil, "rmi", "-f", image)
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
