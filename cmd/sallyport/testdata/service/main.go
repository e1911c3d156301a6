// Command service is what the stories put behind the gate: it listens where PORT says, and does as it is told.
//
//	service                 serve; every answer shows the request's method, target and headers, that for /slow after a second
//	service exit N          end at once with N
//	service idle            never listen
//	service wildcard        listen on every address, or try to
//	service read FILE       serve, and answer with the file
//	service cut             cut off what is in standard output, and end
//	service env             print the environment and end
//	service leave SOCKET    connect, leave the connection to a child, and end
//	service reload SOCKET   serve, and answer with what the admin listener at SOCKET says to a reload
//	service ask             serve, and answer with what ?url= answers, or why it did not: http://..., unix:PATH, or what
//	                        became of read:PATH, write:PATH and run:PATH; with ?as=request or ?as=background by way of
//	                        SALLYPORT_PROXY, with the capability of the request or that of none
//	service get URL METHOD  ask, by way of HTTP_PROXY if it is set, print the answer and end
//	service tunnel ADDRESS  the same inside a CONNECT
package main

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	mode := append(os.Args[1:], "", "")
	switch mode[0] {
	case "exit":
		n, err := strconv.Atoi(mode[1])
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(99)
		}
		os.Exit(n)
	case "idle":
		time.Sleep(time.Minute)
		return
	case "leave":
		leave(mode[1])
		return
	case "get":
		fmt.Println(ask(cmp.Or(mode[2], http.MethodGet), mode[1]))
		return
	case "tunnel":
		fmt.Println(tunnel(mode[1]))
		return
	case "cut":
		if err := os.Stdout.Truncate(0); err != nil {
			fmt.Fprintln(os.Stderr, "service:", err)
			os.Exit(96)
		}
		return
	case "env":
		env := os.Environ()
		slices.Sort(env)
		fmt.Println(strings.Join(env, "\n"))
		return
	}
	host := "127.0.0.1"
	if mode[0] == "wildcard" {
		host = "0.0.0.0"
	}
	l, err := net.Listen("tcp4", net.JoinHostPort(host, os.Getenv("PORT")))
	if err != nil {
		fmt.Fprintln(os.Stderr, "service:", err)
		os.Exit(98)
	}
	terminated := make(chan os.Signal, 1)
	signal.Notify(terminated, syscall.SIGTERM)
	go func() {
		<-terminated
		fmt.Fprintln(os.Stderr, "service: told to end")
		os.Exit(7)
	}()
	_ = http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if mode[0] == "read" {
			b, err := os.ReadFile(mode[1])
			if err != nil {
				http.Error(w, err.Error(), http.StatusForbidden)
				return
			}
			_, _ = w.Write(b)
			return
		}
		if mode[0] == "ask" && r.URL.Query().Has("url") {
			capability := map[string]string{"request": r.Header.Get("X-Sallyport-Capability"), "background": os.Getenv("SALLYPORT_BACKGROUND")}
			_, _ = io.WriteString(w, askAs(capability[r.URL.Query().Get("as")], http.MethodGet, r.URL.Query().Get("url")))
			return
		}
		if mode[0] == "reload" {
			_, _ = io.WriteString(w, reload(mode[1]))
			return
		}
		if r.URL.Path == "/slow" {
			time.Sleep(time.Second)
		}
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s\n", r.Method, r.RequestURI)
		var lines []string
		for name, values := range r.Header {
			lines = append(lines, name+": "+strings.Join(values, " | "))
		}
		slices.Sort(lines)
		fmt.Fprintf(w, "%s\nbody: %s\n", strings.Join(lines, "\n"), body)
	}))
}

// leave makes a connection whose maker has ended: the kernel names its maker still.
func leave(socket string) {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(97)
	}
	file, err := conn.(*net.UnixConn).File()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(97)
	}
	child := exec.Command("sleep", "10")
	child.ExtraFiles = []*os.File{file}
	if err := child.Start(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(97)
	}
	fmt.Println(child.Process.Pid)
}

// ask sends a request where it is told to. The standard library's way with HTTP_PROXY would leave loopback out.
func ask(method, target string) string { return askAs("", method, target) }

// askAs presents a capability, if there is one, to the proxy that hears it.
func askAs(capability, method, target string) string {
	if verb, path, ok := strings.Cut(target, ":/"); ok && (verb == "read" || verb == "write" || verb == "run") {
		return deed(verb, "/"+path)
	}
	transport := &http.Transport{DisableKeepAlives: true}
	client := &http.Client{Transport: transport, Timeout: 10 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	if path, ok := strings.CutPrefix(target, "unix:"); ok {
		target = "http://socket/"
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		}
	} else if capability != "" {
		transport.Proxy = func(*http.Request) (*url.URL, error) { return url.Parse(os.Getenv("SALLYPORT_PROXY")) }
	} else if proxy := os.Getenv("HTTP_PROXY"); proxy != "" {
		transport.Proxy = func(*http.Request) (*url.URL, error) { return url.Parse(proxy) }
	}
	req, err := http.NewRequest(method, target, nil)
	if err != nil {
		return err.Error()
	}
	if capability != "" {
		req.Header.Set("Proxy-Authorization", "Bearer "+capability)
	}
	resp, err := client.Do(req)
	if err != nil {
		return "no answer: " + err.Error()
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	return resp.Status + "\n" + string(body)
}

// deed does something to a file.
func deed(verb, path string) string {
	var err error
	switch verb {
	case "read":
		_, err = os.ReadFile(path)
	case "write":
		err = os.WriteFile(path, []byte("x"), 0o600)
	case "run":
		err = exec.Command(path).Run()
	}
	if err != nil {
		return "not done: " + err.Error()
	}
	return "done"
}

// tunnel speaks HTTP to the address through a CONNECT.
func tunnel(address string) string {
	conn, err := net.Dial("tcp", strings.TrimPrefix(os.Getenv("HTTP_PROXY"), "http://"))
	if err != nil {
		return err.Error()
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	fmt.Fprintf(conn, "CONNECT %s HTTP/1.1\r\nHost: %[1]s\r\n\r\n", address)
	r := bufio.NewReader(conn)
	resp, err := http.ReadResponse(r, &http.Request{Method: http.MethodConnect})
	if err != nil {
		return "no answer: " + err.Error()
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(resp.Body)
		return resp.Status + "\n" + string(body)
	}
	fmt.Fprintf(conn, "GET /inside HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", address)
	inside, err := io.ReadAll(r)
	if err != nil {
		return "no answer inside: " + err.Error()
	}
	return "200 tunnel\n" + string(inside)
}

func reload(socket string) string {
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}
	resp, err := client.Post("http://admin/reload", "", nil)
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	return resp.Status + " " + string(body)
}
