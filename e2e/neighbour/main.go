// Command neighbour is what stands around the service in the escape lab: the other containers of its network, each one
// part of this static program.
//
//	neighbour attacker SOCKET         the attacker's own container: a web server that keeps what it is sent and has commands
//	                                  for a shell, a proxy that refuses everything, and a way in for the lab
//	neighbour partner                 a web server that redirects to wherever ?to= says
//	neighbour billing ADDRESS SECRET  another service, which trusts whoever reaches it: it answers with the secret
//	neighbour engine SOCKET           the container engine's API on TCP, by forwarding to its unix socket
//	neighbour metadata SECRET         the metadata service of a cloud, which gives the secret to whoever asks
//	neighbour names NAME=ADDRESS...   a DNS server; a name with two addresses is answered with the first once after a
//	                                  query for reset.lab, and then with the second
//	neighbour forward FROM TO         forwards TCP connections, in the service's own container: a way around its gate
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "neighbour:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		return fmt.Errorf("which part?")
	}
	switch part, rest := args[0], args[1:]; {
	case part == "attacker" && len(rest) == 1:
		return attacker(rest[0])
	case part == "partner" && len(rest) == 0:
		return http.ListenAndServe(":80", http.HandlerFunc(partner))
	case part == "billing" && len(rest) == 2:
		return http.ListenAndServe(rest[0], billing(rest[1]))
	case part == "engine" && len(rest) == 1:
		return forward("tcp", ":2375", "unix", rest[0])
	case part == "metadata" && len(rest) == 1:
		return http.ListenAndServe(":80", metadata(rest[0]))
	case part == "names":
		return names(rest)
	case part == "forward" && len(rest) == 2:
		return forward("tcp", rest[0], "tcp", rest[1])
	default:
		return fmt.Errorf("unknown part: %s", strings.Join(args, " "))
	}
}

func partner(w http.ResponseWriter, r *http.Request) {
	if to := r.URL.Query().Get("to"); to != "" {
		http.Redirect(w, r, to, http.StatusFound)
		return
	}
	fmt.Fprintln(w, "the partner")
}

func metadata(secret string) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /latest/meta-data/iam/security-credentials/orders", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, `{"AccessKeyId":"LAB","SecretAccessKey":%q}`+"\n", secret)
	})
	return mux
}

func billing(secret string) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/invoices", func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		fmt.Fprintf(w, `{"invoice":%q}`+"\n", secret)
	})
	return mux
}

// visit is a request to the attacker's server.
type visit struct {
	Target string
	Header http.Header
	Body   string
}

// attacker listens on three doors: port 80 for what is sent to the attacker, port 3128 for the proxy, and the socket
// for the lab, which names an address in the first line of a connection and is put through to it.
func attacker(socket string) error {
	var mu sync.Mutex
	seen := []visit{}
	web := http.NewServeMux()
	web.HandleFunc("GET /seen", func(w http.ResponseWriter, _ *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		_ = json.NewEncoder(w).Encode(seen)
	})
	web.HandleFunc("GET /commands", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, `while read l; do echo "$l"; done </etc/shadow`)
	})
	web.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(io.LimitReader(r.Body, 64<<10))
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, visit{r.RequestURI, r.Header, string(body)})
		fmt.Fprintln(w, "thank you")
	})
	refuse := func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "the proxy refuses this destination", http.StatusForbidden)
	}
	ended := make(chan error)
	go func() { ended <- http.ListenAndServe(":80", web) }()
	go func() { ended <- http.ListenAndServe(":3128", http.HandlerFunc(refuse)) }()
	go func() { ended <- relay(socket) }()
	return <-ended
}

func relay(socket string) error {
	l, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	if err := os.Chmod(socket, 0o666); err != nil {
		return err
	}
	return accept(l, func(c net.Conn) {
		in := bufio.NewReader(c)
		address, err := in.ReadString('\n')
		if err != nil {
			return
		}
		to, err := net.Dial("tcp", strings.TrimSpace(address))
		if err != nil {
			fmt.Fprintln(c, err)
			return
		}
		defer to.Close()
		fmt.Fprintln(c, "ok")
		splice(c, in, to)
	})
}

func forward(network, from, toNetwork, to string) error {
	l, err := net.Listen(network, from)
	if err != nil {
		return err
	}
	return accept(l, func(c net.Conn) {
		up, err := net.Dial(toNetwork, to)
		if err != nil {
			fmt.Fprintln(os.Stderr, "neighbour:", err)
			return
		}
		defer up.Close()
		splice(c, c, up)
	})
}

func accept(l net.Listener, serve func(net.Conn)) error {
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			serve(c)
		}()
	}
}

// splice copies both ways until each side has ended what it sends.
func splice(c net.Conn, in io.Reader, up net.Conn) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(up, in)
		closeWrite(up)
	}()
	_, _ = io.Copy(c, up)
	closeWrite(c)
	<-done
}

func closeWrite(c net.Conn) {
	if half, ok := c.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite()
	}
}
