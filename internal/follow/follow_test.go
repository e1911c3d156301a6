package follow

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const settle = 30 * time.Millisecond

// followed is a file that is followed, and what it held whenever that was told.
type followed struct {
	t    *testing.T
	f    *Follower
	name string
	told chan string
}

func followFile(t *testing.T, name string, o Options, deaf bool) *followed {
	t.Helper()
	o.Failed = func(err error) { t.Errorf("not told: %v", err) }
	w := &followed{t: t, f: New(o), name: name, told: make(chan string, 100)}
	w.f.deaf = deaf
	w.f.Follow([]string{name, name})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	ready := make(chan struct{})
	go func() {
		defer close(done)
		close(ready)
		w.f.Run(ctx, func() bool {
			data, err := os.ReadFile(name)
			if err != nil {
				data = []byte("error")
			}
			w.told <- string(data)
			return false
		})
	}()
	<-ready
	t.Cleanup(func() { cancel(); <-done })
	time.Sleep(2 * settle) // until it listens; without that the first look would find what is told all the same
	return w
}

// becomes waits until it is told that the file holds this, and nothing else before, unless that it is away.
func (w *followed) becomes(want string) {
	w.t.Helper()
	for {
		select {
		case got := <-w.told:
			if got == want {
				return
			}
			if got != "error" { // it may be away for a moment, which on a busy machine is longer than that
				w.t.Fatalf("told of %q, want %q", got, want)
			}
		case <-time.After(20 * time.Second):
			w.t.Fatalf("never told of %q", want)
		}
	}
}

// stays holds that nothing is told.
func (w *followed) stays() {
	w.t.Helper()
	select {
	case got := <-w.told:
		w.t.Fatalf("told of %q though nothing has changed", got)
	case <-time.After(6 * settle):
	}
}

func write(t *testing.T, name, what string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(what), 0o600); err != nil {
		t.Fatal(err)
	}
}

func do(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestWaysToChangeAFile(t *testing.T) {
	for way, change := range map[string]func(t *testing.T, name, what string){
		"written in place": write,
		"renamed": func(t *testing.T, name, what string) {
			write(t, name+".new", what)
			do(t, os.Rename(name+".new", name))
		},
		"by an editor": func(t *testing.T, name, what string) { // vim: the old one becomes a backup, and goes
			do(t, os.Rename(name, name+"~"))
			write(t, name, what)
			do(t, os.Remove(name+"~"))
		},
		"removed and made": func(t *testing.T, name, what string) {
			do(t, os.Remove(name))
			write(t, name, what)
		},
		"linked": func(t *testing.T, name, what string) {
			write(t, name+".new", what)
			do(t, os.Remove(name))
			do(t, os.Link(name+".new", name))
		},
		"slowly in place": func(t *testing.T, name, what string) { slowly(t, name, what, os.O_TRUNC) },
		"slowly, made anew": func(t *testing.T, name, what string) {
			do(t, os.Remove(name))
			slowly(t, name, what, os.O_CREATE|os.O_EXCL)
		},
		"its folder": func(t *testing.T, name, what string) {
			dir := filepath.Dir(name)
			do(t, os.Mkdir(dir+".new", 0o700))
			write(t, filepath.Join(dir+".new", filepath.Base(name)), what)
			do(t, os.Rename(dir, dir+".old"))
			do(t, os.Rename(dir+".new", dir))
			do(t, os.RemoveAll(dir+".old"))
		},
	} {
		t.Run(way, func(t *testing.T) {
			t.Parallel()
			name := filepath.Join(t.TempDir(), "in", "file")
			do(t, os.Mkdir(filepath.Dir(name), 0o700))
			write(t, name, "before")
			w := followFile(t, name, Options{Settle: settle, Poll: time.Hour}, false)
			for n := range 3 {
				what := fmt.Sprint("after ", n)
				change(t, name, what)
				w.becomes(what)
				w.stays()
			}
		})
	}
}

// slowly writes as scp does over a bad link.
func slowly(t *testing.T, name, what string, how int) {
	file, err := os.OpenFile(name, os.O_WRONLY|how, 0o600)
	do(t, err)
	_, err = file.WriteString(what[:len(what)/2])
	do(t, err)
	time.Sleep(5 * settle)
	_, err = file.WriteString(what[len(what)/2:])
	do(t, err)
	do(t, file.Close())
}

// TestConfigMap does as the kubelet: the files are links through ..data, which is set to another folder by a rename.
func TestConfigMap(t *testing.T) {
	mount := t.TempDir()
	publish := func(n int, what string) {
		t.Helper()
		dir := fmt.Sprintf("..2026_%d", n)
		do(t, os.Mkdir(filepath.Join(mount, dir), 0o755))
		write(t, filepath.Join(mount, dir, "sallyport.yaml"), what)
		do(t, os.Symlink(dir, filepath.Join(mount, "..data_tmp")))
		do(t, os.Rename(filepath.Join(mount, "..data_tmp"), filepath.Join(mount, "..data")))
		if n > 0 {
			do(t, os.RemoveAll(filepath.Join(mount, fmt.Sprintf("..2026_%d", n-1))))
		}
	}
	publish(0, "zero")
	name := filepath.Join(mount, "sallyport.yaml")
	do(t, os.Symlink("..data/sallyport.yaml", name))
	w := followFile(t, name, Options{Settle: settle, Poll: time.Hour}, false)
	for n, what := range []string{"one", "two", "three"} {
		publish(n+1, what)
		w.becomes(what)
		w.stays()
	}
	publish(4, "three") // another folder, the same file
	w.stays()
}

// TestGoneAndBack holds that a file that is away is told once, and that it is back too.
func TestGoneAndBack(t *testing.T) {
	name := filepath.Join(t.TempDir(), "file")
	write(t, name, "before")
	w := followFile(t, name, Options{Settle: settle, Poll: time.Hour}, false)
	do(t, os.Remove(name))
	w.becomes("error")
	w.stays()
	do(t, os.Mkdir(name, 0o700)) // a folder is no file
	w.becomes("error")
	do(t, os.Remove(name))
	w.becomes("error")
	write(t, name, "before")
	w.becomes("before")
}

func TestWhatIsNoChange(t *testing.T) {
	name := filepath.Join(t.TempDir(), "file")
	write(t, name, "before")
	w := followFile(t, name, Options{Settle: settle, Poll: time.Hour}, false)
	write(t, name, "before")
	do(t, os.Chtimes(name, time.Now(), time.Now()))
	write(t, name+".swp", "something else")
	w.stays()
	write(t, name, "after")
	w.f.Look() // somebody else has read it
	w.stays()
}

// TestBeside holds that a log in the same folder wakes nobody.
func TestBeside(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "file")
	write(t, name, "before")
	happened := make(chan struct{}, 1)
	n, err := newNotifier(happened)
	do(t, err)
	defer n.close()
	do(t, n.watch([]string{name}))
	log, err := os.Create(filepath.Join(dir, "audit.jsonl"))
	do(t, err)
	defer log.Close()
	for range 1000 {
		_, err := log.WriteString("{}\n")
		do(t, err)
	}
	select {
	case <-happened:
		t.Error("woken by a line of a log")
	case <-time.After(6 * settle):
	}
	write(t, name, "after")
	select {
	case <-happened:
	case <-time.After(20 * time.Second):
		t.Error("not woken by the file")
	}
}

// TestPoll holds what is found where the kernel tells nothing: a change that looks the same twice.
func TestPoll(t *testing.T) {
	name := filepath.Join(t.TempDir(), "file")
	write(t, name, "before")
	w := followFile(t, name, Options{Settle: settle, Poll: 3 * settle}, true)
	w.stays()
	write(t, name, "after")
	w.becomes("after")
	w.stays()
}

// TestAgain holds that whoever asks for it is called again.
func TestAgain(t *testing.T) {
	name := filepath.Join(t.TempDir(), "file")
	write(t, name, "before")
	f := New(Options{Settle: settle, Poll: settle})
	f.Follow([]string{name})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	write(t, name, "after")
	calls := 0
	f.Run(ctx, func() bool {
		if calls++; calls == 3 {
			cancel()
		}
		return calls < 3
	})
	if calls != 3 {
		t.Errorf("called %d times", calls)
	}
}

// TestOtherFiles holds that what is followed can change, and what is new is not told of until it changes.
func TestOtherFiles(t *testing.T) {
	dir := t.TempDir()
	name, other := filepath.Join(dir, "file"), filepath.Join(dir, "not", "yet", "there")
	write(t, name, "before")
	w := followFile(t, name, Options{Settle: settle, Poll: time.Hour}, false)
	w.f.Follow([]string{name, other})
	w.stays()
	do(t, os.Mkdir(filepath.Join(dir, "not"), 0o700))
	w.stays()
	do(t, os.Mkdir(filepath.Join(dir, "not", "yet"), 0o700))
	w.stays()
	write(t, other, "there")
	w.becomes("before") // told, and this file is as it was
	w.f.Follow([]string{other})
	w.stays()
	write(t, name, "after")
	w.stays()
}

// TestLeadOfLinksInACircle holds that a name that leads nowhere ends.
func TestLeadOfLinksInACircle(t *testing.T) {
	dir := t.TempDir()
	do(t, os.Symlink("b", filepath.Join(dir, "a")))
	do(t, os.Symlink("a", filepath.Join(dir, "b")))
	into := map[string]map[string]bool{}
	lead(filepath.Join(dir, "a"), into)
	if !into[dir]["a"] || !into[dir]["b"] {
		t.Errorf("%v", into)
	}
}
