package main

import (
	"reflect"
	"slices"
	"strings"
	"testing"
)

const full = `{
	"argv": ["/bin/app", "-x"], "env": {"A": "1", "B": ""}, "cwd": "/srv", "uid": 10, "gid": 11, "groups": [11, 12],
	"hostname": "web-1.example", "poweroff": "exit", "grace": 3, "quiet": true, "root_readonly": true,
	"mounts": [
		{"type": "tmpfs", "target": "/var/tmp", "size": 1048576, "mode": "1777", "options": ["nosuid", "nodev"]},
		{"type": "ffs", "source": "/dev/ld1a", "target": "/data", "options": ["ro", "noatime"]}
	],
	"files": {"app.conf": {"path": "/etc/app.conf", "mode": "0640", "uid": 0, "gid": 11}},
	"secrets": {"token": {"env": "TOKEN"}, "key": {"path": "/run/secrets/app/key"}}
}`

func TestConfigFull(t *testing.T) {
	var c Config
	if err := c.merge([]byte(full), "test"); err != nil {
		t.Fatal(err)
	}
	if c.grace() != 3 || c.Mounts[0].Mode != 0o1777 || c.Files["app.conf"].Mode != 0o640 || *c.Files["app.conf"].UID != 0 {
		t.Errorf("%+v", c)
	}
	if flags, err := c.Mounts[1].flags(); err != nil || flags != 0x1|0x4000000 {
		t.Errorf("flags %#x, %v", flags, err)
	}
	env := c.environ()
	for _, want := range []string{"A=1", "B=", "HOME=/", "TERM=vt220"} {
		if !slices.Contains(env, want) {
			t.Errorf("%q lacks %s", env, want)
		}
	}
	if !slices.IsSorted(env) {
		t.Errorf("%q is not sorted", env)
	}
}

// The host's document replaces what it gives, without leftovers of the image's.
func TestConfigMerge(t *testing.T) {
	var c Config
	image := `{"argv": ["/bin/a", "1", "2"], "env": {"A": "1", "B": "2"}, "hostname": "img", "uid": 7,
		"mounts": [{"type": "tmpfs", "target": "/x", "size": 9, "options": ["ro"]}]}`
	host := `{"argv": ["/bin/b"], "env": {"B": "3"}, "mounts": [{"type": "kernfs", "target": "/kern"}]}`
	for _, doc := range []string{image, host} {
		if err := c.merge([]byte(doc), "test"); err != nil {
			t.Fatal(err)
		}
	}
	want := Config{Argv: []string{"/bin/b"}, Env: map[string]string{"A": "1", "B": "3"}, Hostname: "img", UID: 7,
		Mounts: []Mount{{Type: "kernfs", Target: "/kern"}}}
	if !reflect.DeepEqual(c, want) {
		t.Errorf("%+v\nwant %+v", c, want)
	}
	if c.grace() != defaultGrace {
		t.Errorf("grace %d", c.grace())
	}
}

func TestConfigErrors(t *testing.T) {
	for doc, says := range map[string]string{
		``:                              "unexpected end",
		`[]`:                            "cannot unmarshal",
		`{} {}`:                         "after top-level",
		`{"nope": 1}`:                   `unknown field "nope"`,
		`{"argv": [""]}`:                "argv[0]",
		`{"argv": ["a\u0000b"]}`:        "NUL",
		`{"env": {"1A": ""}}`:           `"1A"`,
		`{"env": {"": ""}}`:             "environment variable",
		`{"env": {"A=B": ""}}`:          "environment variable",
		`{"env": {"A": "\u0000"}}`:      "NUL",
		`{"cwd": "tmp"}`:                "cwd",
		`{"uid": -1}`:                   "uid",
		`{"uid": 4294967296}`:           "uid",
		`{"hostname": "a b"}`:           "hostname",
		`{"poweroff": "later"}`:         "poweroff",
		`{"grace": -1}`:                 "grace",
		`{"grace": 99999}`:              "grace",
		`{"mounts": [{"type": "zfs"}]}`: `type "zfs"`,
		`{"mounts": [{"type": "ffs", "target": "/a"}]}`:                                "source",
		`{"mounts": [{"type": "tmpfs", "target": "a"}]}`:                               "target",
		`{"mounts": [{"type": "tmpfs", "target": "/x/.."}]}`:                           "target /",
		`{"mounts": [{"type": "tmpfs", "target": "/a", "source": "/b"}]}`:              "source",
		`{"mounts": [{"type": "tmpfs", "target": "/a", "options": ["suid"]}]}`:         `"suid"`,
		`{"mounts": [{"type": "tmpfs", "target": "/a", "mode": 493}]}`:                 "octal",
		`{"mounts": [{"type": "tmpfs", "target": "/a", "mode": "0999"}]}`:              "0999",
		`{"mounts": [{"type": "kernfs", "target": "/a", "size": 1}]}`:                  "tmpfs",
		`{"mounts": [{"type": "tmpfs", "target": "/a", "size": 9223372036854775807}]}`: "too large",
		`{"files": {"a/b": {}}}`:                         `"a/b"`,
		`{"files": {".x": {}}}`:                          `".x"`,
		`{"files": {"x": {"path": "etc/x"}}}`:            "path",
		`{"files": {"x": {"path": "/etc/"}}}`:            "directory",
		`{"files": {"x": {"env": "X"}}}`:                 "env",
		`{"secrets": {"x": {"env": "X", "path": "/y"}}}`: "env",
		`{"secrets": {"x": {"env": "X Y"}}}`:             "X Y",
	} {
		var c Config
		if err := c.merge([]byte(doc), "init.json"); err == nil || !strings.Contains(err.Error(), says) || !strings.HasPrefix(err.Error(), "init.json: ") {
			t.Errorf("%s: %v, want it to say %q", doc, err, says)
		}
	}
	var c Config
	if err := c.merge(make([]byte, maxConfig+1), "big"); err == nil {
		t.Error("a document of over 1 MiB was read")
	}
}

func FuzzConfig(f *testing.F) {
	f.Add([]byte(full), []byte(`{}`))
	f.Add([]byte(`{"argv": ["a"], "mounts": [{"type": "tmpfs", "target": "/a"}]}`), []byte(full))
	f.Fuzz(func(t *testing.T, image, host []byte) {
		var c Config
		if c.merge(image, "image") != nil || c.merge(host, "host") != nil {
			return
		}
		// What was taken holds what the rest of the program relies on.
		if err := c.check(); err != nil {
			t.Fatalf("taken, and then refused: %v", err)
		}
		for _, v := range c.environ() {
			if strings.IndexByte(v, 0) >= 0 || strings.IndexByte(v, '=') < 1 {
				t.Fatalf("environment %q", v)
			}
		}
		for _, m := range c.Mounts {
			if _, err := m.flags(); err != nil || m.Target[0] != '/' {
				t.Fatalf("mount %+v: %v", m, err)
			}
		}
	})
}
