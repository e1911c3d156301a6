package ingress

import (
	"net"
	"strconv"
	"testing"
	"time"

	"github.com/summerwind/h2spec/config"
	"github.com/summerwind/h2spec/generic"
	"github.com/summerwind/h2spec/hpack"
	"github.com/summerwind/h2spec/http2"
	"github.com/summerwind/h2spec/spec"

	"github.com/sallyport/sallyport/internal/policy"
)

// h2spec's whole suite, against a listener that has a service behind it. A case that the gate is right to see otherwise
// stands in deviations, with why.
func TestH2Spec(t *testing.T) {
	answered := "net/http answers 400 before it ends the stream, which RFC 9113, section 8.1.1, allows; nothing is forwarded"
	deviations := map[string]string{
		"http2/8.1.2.2/1": answered,
		"http2/8.1.2.2/2": answered,
		"http2/6.5.3/1":   "net/http ends a connection with a setting that is there twice in one frame: no client sends that, and it costs work",
	}
	s := open(t, func(s *stage) {
		s.config.Protocols = []string{"h2c"}
		s.service = streamingRecorder(t)
		public := &policy.Public{Reason: "test", Owner: "tests", Expires: time.Date(2099, 1, 1, 0, 0, 0, 0, time.UTC)}
		p, err := policy.New([]policy.Route{{Name: "get", Match: "GET /spec", Public: public}, {Name: "post", Match: "POST /spec", Public: public}})
		if err != nil {
			t.Fatal(err)
		}
		s.config.Rules.Policy = p
	})
	host, port, err := net.SplitHostPort(s.addr)
	if err != nil {
		t.Fatal(err)
	}
	c := &config.Config{Host: host, Path: "/spec", Timeout: 3 * time.Second, MaxHeaderLen: 4000, Strict: true}
	if c.Port, err = strconv.Atoi(port); err != nil {
		t.Fatal(err)
	}
	cases := 0
	t.Run("cases", func(t *testing.T) {
		for _, g := range []*spec.TestGroup{generic.Spec(), http2.Spec(), hpack.Spec()} {
			cases += runSpec(t, g, c, deviations)
		}
	})
	if cases < 140 {
		t.Errorf("h2spec had %d cases", cases)
	}
}

func runSpec(t *testing.T, g *spec.TestGroup, c *config.Config, deviations map[string]string) (cases int) {
	for i, test := range append(append([]*spec.TestCase{}, g.Tests...), g.StrictTests...) {
		cases++
		name := g.ID() + "/" + strconv.Itoa(i+1)
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn, err := spec.Dial(c)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			err = test.Run(c, conn)
			why, deviates := deviations[name]
			switch {
			case err == spec.ErrSkipped:
				t.Errorf("%s was skipped", test.Desc)
			case err != nil && !deviates:
				t.Errorf("%s: %s: %v", test.Desc, test.Requirement, err)
			case err == nil && deviates:
				t.Errorf("passes, though it was expected not to: %s", why)
			}
		})
	}
	for _, g := range g.Groups {
		cases += runSpec(t, g, c, deviations)
	}
	return cases
}
