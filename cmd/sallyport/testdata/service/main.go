// Command service is what the stories put behind the gate: it listens where PORT says, and does as it is told.
//
//	service                 serve; every answer shows the request's method, target and headers
//	service exit N          end at once with N
//	service idle            never listen
//	service wildcard        listen on every address, or try to
//	service read FILE       serve, and answer with the file
//	service env             print the environment and end
//	service leave SOCKET    connect, leave the connection to a child, and end
//	service reload SOCKET   serve, and answer with what the admin listener at SOCKET says to a reload
package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
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
		if mode[0] == "reload" {
			_, _ = io.WriteString(w, reload(mode[1]))
			return
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
