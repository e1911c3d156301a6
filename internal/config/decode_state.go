package config

import (
	"cmp"
	"net/url"
	"time"

	"github.com/sallyport/sallyport/internal/state"
)

// state decodes where revocations are kept. What is of the other driver is an error: who wrote it believes that it counts.
func (r *reader) state(v *value) state.Config {
	driver := v.get("driver")
	c := state.Config{
		Driver:      cmp.Or(driver.text(), state.Local),
		Path:        v.get("path").text(),
		URL:         v.get("url").texts(),
		Credentials: v.get("credentials_file").text(),
		CA:          v.get("ca_file").text(),
		Bucket:      v.get("bucket").text(),
		Replicas:    int(v.get("replicas").number()),
		MaxFeedAge:  cmp.Or(v.get("max_feed_age").duration(), 10*time.Second),
	}
	if c.Driver == state.NATS {
		if path := v.get("path"); path.isSet {
			r.fail(path, "remove it", "a file is of `driver: local`")
		}
		r.cluster(v, driver, &c)
		return c
	}
	for _, name := range []string{"url", "credentials_file", "ca_file", "bucket", "replicas"} {
		if of := v.get(name); of.isSet && !driver.wrong() {
			r.fail(of, "write `driver: nats`, or remove it", "is of `driver: nats`")
		}
	}
	if c.Path == "" {
		c.Path = r.absolute("state.db")
	}
	return c
}

func (r *reader) cluster(v, driver *value, c *state.Config) {
	c.Bucket, c.Replicas = cmp.Or(c.Bucket, "sallyport"), cmp.Or(c.Replicas, 3)
	if !v.get("url").isSet {
		r.fail(driver, "name them: `url: [\"tls://nats-1.internal:4222\"]`", "needs the `url` of its servers")
	}
	if n := v.get("replicas"); n.ok && n.number()%2 == 0 {
		r.fail(n, "write 3 or 5", "must be odd: an even number of servers survives no more losses than one fewer")
	}
	for _, e := range v.get("url").entries {
		if u, err := url.Parse(e.text()); e.ok && err == nil && u.Scheme == "nats" && !loopback(u.Hostname()) && !v.get("ca_file").isSet {
			r.fail(e, "write `tls://`, or name a `ca_file`", "without TLS only on loopback: anyone on the way could leave revocations out")
		}
	}
}
