package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"
)

// step is one thing that a person tries.
type step struct {
	title  string
	method string
	path   string
	body   string
	token  func(*stage) (string, error) // nil: none is sent
	status []int                        // any of these
	code   string                       // in the audit record; empty: not looked at
	absent string                       // what must not be in the answer
}

func tokenOf(args ...string) func(*stage) (string, error) {
	return func(s *stage) (string, error) { return s.mint(args...) }
}

// forged is a token that anybody can write: a good one's claims under "alg": "none".
func forged(s *stage) (string, error) {
	good, err := s.mint("--subject", "mallory", "--scope", "orders:read orders:write orders:admin")
	if err != nil {
		return "", err
	}
	header := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none","typ":"at+jwt"}`))
	return header + "." + strings.Split(good, ".")[1] + ".", nil
}

func steps() []step {
	reader := []string{"--subject", "alice", "--scope", "orders:read"}
	with := func(more ...string) func(*stage) (string, error) {
		return tokenOf(append(slices.Clone(reader), more...)...)
	}
	return []step{
		{title: "No token", method: "GET", path: "/orders", status: []int{401}, code: "missing_token"},
		{title: "A good token", method: "GET", path: "/orders", token: with(), status: []int{200}, code: "allowed"},
		{title: `A forged token ("alg": "none")`, method: "GET", path: "/orders", token: forged, status: []int{401}},
		{title: "A token for another audience", method: "GET", path: "/orders", token: with("--audience", "https://payroll.demo.test"), status: []int{401}},
		{title: "An expired token", method: "GET", path: "/orders", token: with("--age", "1h", "--lifetime", "5m"), status: []int{401}},
		{title: "A good token without the scope", method: "POST", path: "/orders", body: `{"customer":"Eve","items":[{"article":"TEA-100","quantity":1}]}`, token: with(), status: []int{403}, code: "insufficient_scope"},
		{title: "Another spelling of a protected path", method: "GET", path: "/health/..%2forders", status: []int{400}},
		{title: "Reading /etc/shadow from inside, through a careless handler", method: "GET", path: "/invoices/export?file=/etc/shadow",
			token: with(), status: []int{403, 404}, code: "allowed", absent: "root:"},
	}
}

// walk takes every step and returns how many are not as they must be.
func (s *stage) walk(ctx context.Context) (wrong int) {
	all := steps()
	for i, st := range all {
		if ctx.Err() != nil {
			return wrong
		}
		fmt.Printf("\n\033[1m%d. %s\033[0m\n", i+1, st.title)
		if err := s.take(st); err != nil {
			wrong++
			fmt.Printf("  \033[31mNOT AS IT MUST BE: %v\033[0m\n", err)
		}
	}
	for i, last := range []struct {
		title string
		take  func() error
	}{
		{"Reaching for the cloud's credentials through the same handler, and going on with the token", s.quarantine},
		{"Reaching the service's port past the gate", s.passBy},
	} {
		fmt.Printf("\n\033[1m%d. %s\033[0m\n", len(all)+1+i, last.title)
		if err := last.take(); err != nil {
			wrong++
			fmt.Printf("  \033[31mNOT AS IT MUST BE: %v\033[0m\n", err)
		}
	}
	return wrong
}

func (s *stage) take(st step) error {
	req, err := http.NewRequest(st.method, s.url+st.path, strings.NewReader(st.body))
	if err != nil {
		return err
	}
	curl := []string{"curl -i"}
	if st.method != "GET" {
		curl = append(curl, "-X "+st.method)
	}
	if strings.Contains(st.path, "..") {
		curl = append(curl, "--path-as-is")
		req.URL.Opaque = st.path // sent as it stands
	}
	if st.token != nil {
		token, err := st.token(s)
		if err != nil {
			return err
		}
		req.Header.Set("Authorization", "Bearer "+token)
		curl = append(curl, fmt.Sprintf("-H 'Authorization: Bearer %s'", short(token)))
	}
	if st.body != "" {
		req.Header.Set("Content-Type", "application/json")
		curl = append(curl, "-H 'Content-Type: application/json'", "-d '"+st.body+"'")
	}
	fmt.Printf("  $ %s '%s%s'\n", strings.Join(curl, " "), s.url, st.path)
	before := s.auditSize()
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return err
	}
	fmt.Printf("  < HTTP %s\n", resp.Status)
	if c := resp.Header.Get("WWW-Authenticate"); c != "" {
		fmt.Printf("  < WWW-Authenticate: %s\n", c)
	}
	fmt.Printf("  < %s\n", clip(string(body), 300))
	records := s.records(before)
	for _, r := range records {
		fmt.Printf("  audit: %s\n", r)
	}
	switch {
	case !slices.Contains(st.status, resp.StatusCode):
		return fmt.Errorf("the status is %d, not %v", resp.StatusCode, st.status)
	case st.absent != "" && bytes.Contains(body, []byte(st.absent)):
		return fmt.Errorf("the answer holds %q", st.absent)
	case len(records) != 2:
		return fmt.Errorf("it left %d audit lines, not one before and one after", len(records))
	case st.code != "" && !strings.Contains(records[0], `"code":"`+st.code+`"`):
		return fmt.Errorf("the audit record's code is not %s", st.code)
	}
	return nil
}

// quarantine has the service try to get out, and shows that the token behind it is ended by that: in front of the gate, within
// a second.
func (s *stage) quarantine() error {
	token, err := s.mint("--subject", "mallory", "--scope", "orders:read")
	if err != nil {
		return err
	}
	ask := func(path string) (status int, body string, err error) {
		req, err := http.NewRequest(http.MethodGet, s.url+path, nil)
		if err != nil {
			return 0, "", err
		}
		req.Header.Set("Authorization", "Bearer "+token)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return 0, "", nil // what was in flight is ended with the token: then there is no answer
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
		return resp.StatusCode, string(b), nil
	}
	show := func(path string, status int, body string) {
		fmt.Printf("  $ curl -i -H 'Authorization: Bearer %s' '%s%s'\n", short(token), s.url, path)
		if status == 0 {
			fmt.Println("  < (no answer: the request was ended)")
			return
		}
		fmt.Printf("  < HTTP %d %s\n  < %s\n", status, http.StatusText(status), clip(body, 300))
	}
	const metadata = "/invoices/export?file=http://169.254.169.254/latest/meta-data/"
	fmt.Println("  (after two quiet seconds: where several callers could have been it, nobody is blamed)")
	time.Sleep(2200 * time.Millisecond)
	before := s.auditSize()
	status, body, err := ask(metadata)
	if err != nil {
		return err
	}
	show(metadata, status, body)
	if status == http.StatusOK {
		return errors.New("it was reached")
	}
	for began := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		if status, body, err = ask("/orders"); err != nil {
			return err
		}
		if status == http.StatusUnauthorized || time.Since(began) > time.Second {
			break
		}
	}
	show("/orders", status, body)
	said := strings.Join(s.records(before), "\n")
	for line := range strings.Lines(said) {
		for _, of := range []string{`"point":"egress"`, `"point":"state"`, `"point":"watch"`, `"code":"revoked"`} {
			if strings.Contains(line, of) {
				fmt.Printf("  audit: %s\n", strings.TrimSpace(line))
				break
			}
		}
	}
	switch {
	case status != http.StatusUnauthorized || !strings.Contains(body, "revoked"):
		return fmt.Errorf("a second later the token gets %d", status)
	case !strings.Contains(said, `"code":"escape_target"`):
		return errors.New("the attempt is not on record")
	}
	return nil
}

// passBy tries to reach the service without the gate, from an address that is not its loopback address.
func (s *stage) passBy() error {
	host, err := outside()
	if err != nil {
		return err
	}
	target := net.JoinHostPort(host, s.port)
	fmt.Printf("  $ curl -i 'http://%s/orders'\n", target)
	conn, err := net.DialTimeout("tcp", target, 3*time.Second)
	if err == nil {
		conn.Close()
		return fmt.Errorf("%s answers", target)
	}
	fmt.Printf("  < %v\n", err)
	for _, r := range s.records(0) {
		var started struct {
			Detail struct {
				Event    string `json:"event"`
				Enforced []struct {
					Name    string `json:"name"`
					InForce bool   `json:"in_force"`
				} `json:"enforced"`
			} `json:"detail"`
		}
		if json.Unmarshal([]byte(r), &started) != nil || started.Detail.Event != "started" {
			continue
		}
		for _, p := range started.Detail.Enforced {
			if p.Name == "listen-loopback" && p.InForce {
				fmt.Printf("  audit: no request, no record; the start's record says: %s in force\n", p.Name)
				return nil
			}
		}
		return fmt.Errorf("the start's record does not say that listen-loopback is in force: %s", clip(r, 600))
	}
	return fmt.Errorf("there is no record of the start")
}

// outside is an address of this machine that is not 127.0.0.1: a service on 0.0.0.0 would answer there.
func outside() (string, error) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return "", err
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil && !n.IP.IsLoopback() {
			return n.IP.String(), nil
		}
	}
	return "127.0.0.2", nil // no network here: all of 127/8 is ours, and 0.0.0.0 listens there too
}

func (s *stage) auditSize() int64 {
	st, err := os.Stat(s.path("var/audit.jsonl"))
	if err != nil {
		return 0
	}
	return st.Size()
}

// records are the audit lines from an offset on. The outcome is written after the answer, so it waits for it a little.
func (s *stage) records(from int64) []string {
	var lines []string
	for range 40 {
		lines = nil
		f, err := os.Open(s.path("var/audit.jsonl"))
		if err != nil {
			return nil
		}
		if _, err := f.Seek(from, io.SeekStart); err == nil {
			sc := bufio.NewScanner(f)
			sc.Buffer(nil, 1<<20)
			for sc.Scan() {
				if !strings.Contains(sc.Text(), `"kind":"checkpoint"`) { // which comes when it is due
					lines = append(lines, sc.Text())
				}
			}
		}
		f.Close()
		if len(lines) >= 2 {
			break
		}
		time.Sleep(25 * time.Millisecond)
	}
	return lines
}

func short(token string) string {
	if len(token) < 40 {
		return token
	}
	return token[:16] + "..." + token[len(token)-8:]
}

func clip(s string, most int) string {
	s = strings.TrimSpace(s)
	if len(s) > most {
		return s[:most] + "..."
	}
	return s
}
