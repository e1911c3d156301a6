package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"syscall"
	"time"

	"github.com/sallyport/sallyport/internal/config"
)

// errNotRunning says that no sallyport answers at the admin socket of a file, or that the file has none.
var errNotRunning = errors.New("no running sallyport answers")

// ask has the running sallyport of a file do something, by its admin socket. answer may be nil. What it refuses is an error
// with its reason.
func ask(ctx context.Context, f *config.File, method, path string, body, answer any) error {
	socket, ok := strings.CutPrefix(f.Admin.Listen, "unix:")
	if !ok {
		return fmt.Errorf("%w: admin.listen of %s is no unix socket", errNotRunning, f.Path)
	}
	data, err := json.Marshal(body)
	if err != nil {
		return err
	}
	r, err := http.NewRequestWithContext(ctx, method, "http://sallyport"+path, bytes.NewReader(data))
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", "application/json")
	c := &http.Client{
		Timeout: 30 * time.Second,
		Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		}},
	}
	res, err := c.Do(r)
	switch {
	case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w at %s", errNotRunning, f.Admin.Listen)
	case err != nil:
		return fmt.Errorf("ask the running sallyport: %w", err)
	}
	defer res.Body.Close()
	if res.StatusCode/100 != 2 {
		var p struct{ Code, Detail string }
		if err := json.NewDecoder(res.Body).Decode(&p); err != nil || p.Code == "" {
			return fmt.Errorf("the running sallyport refused: %s", res.Status)
		}
		return fmt.Errorf("the running sallyport refused: %s: %s", p.Code, p.Detail)
	}
	if answer == nil {
		return nil
	}
	if err := json.NewDecoder(res.Body).Decode(answer); err != nil {
		return fmt.Errorf("read what the running sallyport says: %w", err)
	}
	return nil
}
