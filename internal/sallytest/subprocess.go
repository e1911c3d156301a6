package sallytest

import (
	"bytes"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
)

// subprocessVariable names, in the subprocess, the test that it was started for.
const subprocessVariable = "SALLYTEST_SUBPROCESS"

// InSubprocess runs the current test in a process of its own, for tests that
// confine themselves and so could not be followed by another. It returns true in
// the subprocess; in the parent it waits for it, fails or skips as it did, and
// returns false:
//
//	func TestConfined(t *testing.T) {
//		if !sallytest.InSubprocess(t) {
//			return
//		}
//		confine()
//		...
//	}
//
// env ("NAME=value") is added to the subprocess's environment.
func InSubprocess(t *testing.T, env ...string) bool {
	t.Helper()
	if os.Getenv(subprocessVariable) == t.Name() {
		return true
	}
	var pattern []string
	for _, part := range strings.Split(t.Name(), "/") {
		pattern = append(pattern, "^"+regexp.QuoteMeta(part)+"$")
	}
	c := exec.CommandContext(t.Context(), os.Args[0], "-test.run="+strings.Join(pattern, "/"), "-test.v", "-test.count=1")
	c.Env = append(append(os.Environ(), env...), subprocessVariable+"="+t.Name())
	var output bytes.Buffer
	c.Stdout, c.Stderr = &output, &output
	err := c.Run()
	skipped := strings.Contains(output.String(), "--- SKIP: "+t.Name()+" (")
	passed := strings.Contains(output.String(), "--- PASS: "+t.Name()+" (")
	switch {
	case err != nil:
		t.Fatalf("in the subprocess: %v\n%s", err, &output)
	case skipped:
		t.Skipf("in the subprocess:\n%s", &output)
	case !passed: // for instance because the test called os.Exit(0)
		t.Fatalf("the subprocess ended without a verdict:\n%s", &output)
	}
	return false
}
