package main

import (
	"strings"
	"testing"
)

func TestStepDocument(t *testing.T) {
	for doc, want := range map[string]string{
		`{"argv": ["sh"], "build": {"log": 11, "size": 1048576, "output": 5, "init": "/sbin/.i", "remove": ["/sbin/init", "/sbin"], "links": {"/root/.netrc": "/run/secrets/netrc"}}}`: "",
		`{"build": null}`:                                                                              "",
		`{"build": {"log": 11, "size": 4096}}`:                                                         "size 4096",
		`{"build": {"log": 64, "size": 1048576}}`:                                                      "log 64",
		`{"build": {"log": 11, "size": 1048577}}`:                                                      "whole sectors",
		`{"build": {"log": 11, "size": 1048576, "output": -1}}`:                                        "output -1",
		`{"build": {"log": 11, "size": 1048576, "init": "sbin"}}`:                                      "absolute path",
		`{"build": {"log": 11, "size": 1048576, "remove": ["a"]}}`:                                     "absolute path",
		`{"build": {"log": 11, "size": 1048576, "links": {"/a": ""}}}`:                                 "absolute path",
		`{"build": {"log": 11, "size": 1048576, "links": {"/a": "/b\u0000"}}}`:                         "absolute path",
		`{"build": {"log": 11, "size": 1048576, "more": 1}}`:                                           "unknown field",
		`{"build": {"log": -1, "size": 1048576}}`:                                                      "cannot unmarshal",
		`{"build": {"log": 11, "size": 1048576, "remove": [` + strings.Repeat(`"/x",`, 20) + `"/x"]}}`: "at most",
	} {
		var c Config
		err := c.merge([]byte(doc), "doc")
		switch {
		case want == "" && err != nil:
			t.Errorf("%.80s: %v", doc, err)
		case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("%.80s: %v, want %q", doc, err, want)
		}
	}
}

// FuzzStepDocument: a document is refused, or all that it asks for is within the bounds.
func FuzzStepDocument(f *testing.F) {
	f.Add([]byte(`{"argv": ["sh", "-c", "x"], "env": {"A": "b"}, "build": {"log": 11, "size": 1048576, "output": 5, "init": "/sbin/.i", "remove": ["/sbin/init"], "links": {"/a": "/b"}}}`))
	f.Add([]byte(`{"mounts": [{"type": "tmpfs", "target": "/x", "mode": "0755"}], "secrets": {"t": {"env": "T"}}, "grace": 3}`))
	f.Add([]byte(`{"net": [{"dhcp": true, "address": "10.0.2.15/24", "dns": ["10.0.2.3"]}], "uid": 4294967295}`))
	f.Fuzz(func(t *testing.T, doc []byte) {
		var c Config
		if c.merge(doc, "doc") != nil {
			return
		}
		if err := c.check(); err != nil {
			t.Fatalf("taken, and then %v", err)
		}
		if b := c.Build; b != nil && (b.Size < minStepLog || b.Log >= maxStepMinor || len(b.Remove) > maxStepRemove) {
			t.Fatalf("%+v", b)
		}
		// A second document over it keeps it sound.
		if err := c.merge([]byte(`{"quiet": true}`), "second"); err != nil {
			t.Fatal(err)
		}
	})
}
