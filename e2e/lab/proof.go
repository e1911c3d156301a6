package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// secrets are made anew for each run: whoever shows one has really read it.
type secrets struct {
	orders     string // what the service keeps for the right callers
	shadow     string // in a file that only root may read
	metadata   string // what the metadata service gives out
	account    string // the service account's token
	supervisor string // in the environment of whatever started the service
	owned      string // what attacks write
	billing    string // what the other service keeps for the right callers
}

// proof is what shows that an attack succeeded.
type proof struct {
	text string // for the page
	show func(context.Context, *service, answer) bool
}

// says: the answer holds the secret.
func says(text string, which func(*secrets) string) proof {
	return proof{text, func(_ context.Context, s *service, a answer) bool {
		return strings.Contains(a.body, which(&s.lab.secret))
	}}
}

func ofOrders() proof {
	return says("the service's data is in the answer", func(s *secrets) string { return s.orders })
}

func ofShadow() proof {
	return says("the content of /etc/shadow is in the answer", func(s *secrets) string { return s.shadow })
}

func ofMetadata() proof {
	return says("the cloud credential is in the answer", func(s *secrets) string { return s.metadata })
}

func ofSupervisor() proof {
	return says("the supervisor's secret is in the answer", func(s *secrets) string { return s.supervisor })
}

func unproxied() proof {
	p := ofMetadata()
	p.text = "refused through the proxy; without it the cloud credential is in the answer"
	return p
}

func pinged() proof {
	return says("the neighbour has answered the packet", func(*secrets) string { return "an echo reply to a packet made by hand" })
}

// hostFile: the host really has the file, with what the attack wrote.
func hostFile(path, text string) proof {
	return proof{text, func(_ context.Context, s *service, _ answer) bool { return s.owned(path) }}
}

func engineFile() proof {
	return proof{"the host has a file of root's, written by a container that the attack made", func(_ context.Context, s *service, _ answer) bool {
		path := filepath.Join(s.dir(), "escape", "owned")
		st, err := os.Stat(path)
		if err != nil || !s.owned("escape/owned") {
			return false
		}
		root := st.Sys().(*syscall.Stat_t).Uid == 0
		return root && os.Remove(path) == nil // the next attack begins without it
	}}
}

// owned reports whether a file below the service's folder on the host holds what attacks write.
func (s *service) owned(path string) bool {
	content, err := os.ReadFile(filepath.Join(s.dir(), path))
	return err == nil && strings.Contains(string(content), s.lab.secret.owned)
}

// containerFile: the file in the container is not what it was.
func containerFile(path string) proof {
	return proof{"the file in the container, owned by root, holds what was sent", func(ctx context.Context, s *service, _ answer) bool {
		archive, err := s.lab.engine.run(ctx, nil, "cp", s.lab.engine.name(s.container)+":"+path, "-")
		return err == nil && strings.Contains(archive, s.lab.secret.owned)
	}}
}

// stolen: the attacker's server has been sent the caller's token.
func stolen() proof {
	return proof{"the attacker's server has the caller's token", func(ctx context.Context, s *service, _ answer) bool {
		return strings.Contains(s.seen(ctx), s.carried)
	}}
}

// ended: the container is down.
func ended() proof {
	return proof{"the container has ended", func(ctx context.Context, s *service, _ answer) bool {
		for range 20 {
			if !s.lab.engine.running(ctx, s.container) {
				return true
			}
			time.Sleep(100 * time.Millisecond)
		}
		return false
	}}
}
