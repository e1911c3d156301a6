package config

import (
	"net/netip"
	"strings"
)

// Reload says when the file is read again.
type Reload struct{ Watch bool }

// Telemetry is where traces are sent.
type Telemetry struct {
	Endpoint    string // without a slash at its end
	HeadersFile string // empty: no header
	CAFile      string // empty: the system's authorities alone
	Sample      float64
	Trust       []netip.Prefix
}

// AccessLog is the log of requests; empty: there is none.
type AccessLog struct{ File string }

// defaultSample is the part of requests whose traces are sent.
const defaultSample = 0.01

func reload(v *value) Reload {
	watch := v.get("watch")
	return Reload{Watch: !watch.isSet || watch.yes()}
}

func telemetry(v *value) *Telemetry {
	if !v.isSet {
		return nil
	}
	otlp := v.get("otlp")
	t := &Telemetry{
		Endpoint:    strings.TrimSuffix(otlp.get("endpoint").raw, "/"),
		HeadersFile: otlp.get("headers_file").text(),
		CAFile:      otlp.get("ca_file").text(),
		Sample:      defaultSample,
	}
	if s := v.get("sample"); s.ok {
		t.Sample = s.fraction()
	}
	for _, p := range v.get("trust").entries {
		if p.ok {
			t.Trust = append(t.Trust, p.prefix())
		}
	}
	return t
}

// operated are files of these sections that the program must not write, and those that it must not read either.
func operated(f *File) (believed, ours []place) {
	if f.AccessLog.File != "" && f.AccessLog.File != "-" {
		ours = append(ours, place{"the access log (access_log.file)", f.AccessLog.File})
	}
	if t := f.Telemetry; t != nil {
		if t.HeadersFile != "" {
			ours = append(ours, place{"the collector's headers (telemetry.otlp.headers_file)", t.HeadersFile})
		}
		if t.CAFile != "" {
			believed = append(believed, place{"the roots of the collector (telemetry.otlp.ca_file)", t.CAFile})
		}
	}
	return believed, ours
}

// Watched are the files that a reload reads: this one, and those it names that nobody else reads again.
func (f *File) Watched() []string {
	files := []string{f.Path}
	add := func(path string) {
		if path != "" {
			files = append(files, path)
		}
	}
	for _, i := range f.Ingress.Issuers {
		add(i.Keys.File)
		if i.Introspection != nil {
			add(i.Introspection.CAFile)
		}
	}
	for _, h := range f.Ingress.Hops {
		add(h.Keys.File)
	}
	for _, d := range f.Egress.Rules.Destinations {
		add(d.CA)
	}
	return files
}
