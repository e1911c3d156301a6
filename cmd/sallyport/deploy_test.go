package main

import (
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"go.yaml.in/yaml/v4"

	"github.com/sallyport/sallyport/internal/sallytest"
)

const (
	dashboardFile = "../../deploy/grafana/sallyport.json"
	rulesFile     = "../../deploy/prometheus/sallyport.rules.yml"
	operationsDoc = "../../doc/operations.md"
)

// registered are the metrics of a gate with everything that it can have, with the labels of each.
func registered(t *testing.T) map[string][]string {
	t.Helper()
	upstream := httpServer(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "orders") })
	dir := t.TempDir()
	writeKeyPair(t, filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"))
	r := serveGate(t, sallytest.NewIssuer(t), strings.Replace(settings(upstream, "a"), "  listen: 127.0.0.1:0\n", fmt.Sprintf(`  listen: 127.0.0.1:0
  tls: {cert: %[1]s/cert.pem, key: %[1]s/key.pem}
`, dir), 1)+`egress: {listen: "127.0.0.1:0"}
telemetry: {otlp: {endpoint: "http://127.0.0.1:1"}}
access_log: {file: access.jsonl}
admin: {listen: "unix:admin.sock"}
`)
	newRefusals(r.gate) // as run has it
	descs := make(chan *prometheus.Desc, 1000)
	r.registry.Describe(descs)
	close(descs)
	form := regexp.MustCompile(`fqName: "([^"]+)".*variableLabels: \{([^}]*)\}`)
	metrics := map[string][]string{}
	for d := range descs {
		m := form.FindStringSubmatch(d.String())
		if m == nil {
			t.Fatalf("the form of a description has changed: %s", d)
		}
		metrics[m[1]] = strings.FieldsFunc(m[2], func(r rune) bool { return r == ',' || r == ' ' })
	}
	families, err := r.registry.Gather() // those that describe nothing, and whether a histogram is one
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if _, ok := metrics[f.GetName()]; !ok {
			metrics[f.GetName()] = nil
		}
	}
	if len(metrics) < 40 {
		t.Fatalf("only %d metrics", len(metrics))
	}
	return metrics
}

// checkExpression holds that a metric in it exists, and so do the labels that it is asked for.
func checkExpression(t *testing.T, what, expression string, metrics map[string][]string) {
	t.Helper()
	expression = strings.NewReplacer("$__rate_interval", "5m").Replace(expression)
	found := 0
	for _, m := range regexp.MustCompile(`\b((?:sallyport|process|go)_[a-z_]+)(?:\{([^}]*)\})?`).FindAllStringSubmatch(expression, -1) {
		found++
		name := m[1]
		if _, ok := metrics[name]; !ok {
			for _, suffix := range []string{"_bucket", "_count", "_sum"} {
				name = strings.TrimSuffix(name, suffix)
			}
		}
		labels, ok := metrics[name]
		if !ok {
			t.Errorf("%s: there is no metric %s", what, m[1])
			continue
		}
		for _, l := range regexp.MustCompile(`([a-z_]+)(?:=~|!=|!~|=)`).FindAllStringSubmatch(m[2], -1) {
			if !slices.Contains(append([]string{"job", "instance", "le"}, labels...), l[1]) {
				t.Errorf("%s: %s has no label %s", what, m[1], l[1])
			}
		}
	}
	for _, by := range regexp.MustCompile(`by \(([^)]*)\)`).FindAllStringSubmatch(expression, -1) {
		for _, l := range strings.Split(by[1], ", ") {
			any := slices.Contains([]string{"job", "instance", "le"}, l)
			for name, labels := range metrics {
				any = any || strings.Contains(expression, name) && slices.Contains(labels, l)
			}
			if !any {
				t.Errorf("%s: no metric in it has the label %s", what, l)
			}
		}
	}
	if found == 0 {
		t.Errorf("%s: %q asks for no metric", what, expression)
	}
}

// dashboard is what the test reads of Grafana's form.
type dashboard struct {
	UID, Title string
	Panels     []struct {
		ID      int
		Type    string
		Title   string
		GridPos struct{ H, W, X, Y int }
		Targets []struct{ RefID, Expr string }
	}
	Annotations struct{ List []struct{ Expr string } }
	Templating  struct {
		List []struct{ Name, Definition string }
	}
}

// TestDashboard holds that the dashboard asks for what a running gate has, and that its panels do not cover one another.
func TestDashboard(t *testing.T) {
	metrics := registered(t)
	data, err := os.ReadFile(dashboardFile)
	if err != nil {
		t.Fatal(err)
	}
	var d dashboard
	if err := json.Unmarshal(data, &d); err != nil {
		t.Fatal(err)
	}
	if d.UID == "" || d.Title == "" || len(d.Panels) < 10 {
		t.Errorf("uid %q, title %q, %d panels", d.UID, d.Title, len(d.Panels))
	}
	ids, taken := map[int]bool{}, map[[2]int]string{}
	var expressions []string
	for _, p := range d.Panels {
		if ids[p.ID] || p.Title == "" {
			t.Errorf("panel %d %q: an id for two, or no title", p.ID, p.Title)
		}
		ids[p.ID] = true
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if other := taken[[2]int{x, y}]; other != "" || x >= 24 {
					t.Fatalf("%q covers %q, or the edge", p.Title, other)
				}
				taken[[2]int{x, y}] = p.Title
			}
		}
		if (len(p.Targets) == 0) != (p.Type == "row") {
			t.Errorf("panel %q has %d queries", p.Title, len(p.Targets))
		}
		for _, q := range p.Targets {
			checkExpression(t, p.Title, q.Expr, metrics)
			expressions = append(expressions, q.Expr)
		}
	}
	for _, a := range d.Annotations.List {
		checkExpression(t, "annotation", a.Expr, metrics)
		expressions = append(expressions, a.Expr)
	}
	for _, v := range d.Templating.List {
		if v.Definition != "" {
			checkExpression(t, v.Name, v.Definition, metrics)
		}
	}

	// promtool parses rules, so each query is one.
	rules := "groups: [{name: dashboard, rules: [\n"
	for n, e := range expressions {
		e = strings.NewReplacer("$__rate_interval", "5m", "$job", ".*", "$instance", ".*").Replace(e)
		rules += fmt.Sprintf("  {record: q%d, expr: %q},\n", n, e)
	}
	file := filepath.Join(t.TempDir(), "rules.yml")
	put(t, file, rules+"]}]\n")
	promtool(t, "check", "rules", file)
}

// TestAlerts holds that each alert asks for what a running gate has, and is explained where it says; that Prometheus reads the
// rules; and that they fire when they should, and are quiet when nothing is wrong.
func TestAlerts(t *testing.T) {
	metrics := registered(t)
	data, err := os.ReadFile(rulesFile)
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Groups []struct {
			Rules []struct {
				Alert, Expr         string
				Labels, Annotations map[string]string
			}
		}
	}
	if err := yaml.Unmarshal(data, &file); err != nil {
		t.Fatal(err)
	}
	doc, err := os.ReadFile(operationsDoc)
	if err != nil {
		t.Fatal(err)
	}
	explained := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^### (Sallyport\w+)$`).FindAllStringSubmatch(string(doc), -1) {
		explained[m[1]] = true
	}
	if len(file.Groups) != 1 || len(file.Groups[0].Rules) < 10 {
		t.Fatal("where are the rules?")
	}
	tests, err := os.ReadFile("testdata/alerts.test.yml")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range file.Groups[0].Rules {
		checkExpression(t, r.Alert, r.Expr, metrics)
		if !slices.Contains([]string{"critical", "warning", "info"}, r.Labels["severity"]) || r.Annotations["summary"] == "" || r.Annotations["description"] == "" {
			t.Errorf("%s: severity %q, or nothing is said of it", r.Alert, r.Labels["severity"])
		}
		if r.Annotations["runbook"] != "doc/operations.md#"+strings.ToLower(r.Alert) || !explained[r.Alert] {
			t.Errorf("%s: %q is not where it is explained", r.Alert, r.Annotations["runbook"])
		}
		delete(explained, r.Alert)
		if !strings.Contains(string(tests), r.Alert+"\"}'") {
			t.Errorf("%s: testdata/alerts.test.yml does not let it fire", r.Alert)
		}
	}
	for name := range explained {
		t.Errorf("%s is explained, and there is no such alert", name)
	}
	promtool(t, "check", "rules", rulesFile)
	promtool(t, "test", "rules", "testdata/alerts.test.yml")
}

// promtool is Prometheus's own.
func promtool(t *testing.T, args ...string) {
	t.Helper()
	path, err := exec.LookPath("promtool")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("promtool is not here: scripts/packages installs it")
		}
		t.Skip("promtool is not here")
	}
	if out, err := exec.Command(path, args...).CombinedOutput(); err != nil {
		t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// writeKeyPair writes the certificate of a test server.
func writeKeyPair(t *testing.T, cert, key string) {
	t.Helper()
	server := httptest.NewUnstartedServer(nil)
	server.StartTLS()
	defer server.Close()
	c := server.TLS.Certificates[0]
	writePEM(t, cert, "CERTIFICATE", c.Certificate[0])
	private, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	writePEM(t, key, "PRIVATE KEY", private)
}

func writePEM(t *testing.T, path, kind string, der []byte) {
	t.Helper()
	put(t, path, string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})))
}
