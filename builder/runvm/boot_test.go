package runvm

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/smolvmm/smolvmm/builder"
	"github.com/smolvmm/smolvmm/builder/tree"
)

// TestBootable: whatever a root has at /sbin and /dev, the copy boots into smolinit,
// what was put in for that is told, and the root itself is left alone.
func TestBootable(t *testing.T) {
	file := func(s string) *tree.Node { return tree.NewFile(0o755, tree.Bytes(s)) }
	for _, c := range []struct {
		name    string
		put     map[string]*tree.Node
		init    string   // where the image's own is put aside
		remove  []string // what is put in
		place   string   // where smolinit is
		refused string
	}{
		{"empty", nil, "", []string{"/sbin/init", "/sbin"}, "sbin/init", ""},
		{"no init", map[string]*tree.Node{"sbin/mount": file("m")}, "", []string{"/sbin/init"}, "sbin/init", ""},
		{"own init", map[string]*tree.Node{"sbin/init": file("own")}, "/sbin/init.smolvmm", nil, "sbin/init", ""},
		{"a name is taken", map[string]*tree.Node{"sbin/init": file("own"), "sbin/init.smolvmm": file("x")}, "/sbin/init.smolvmm0", nil, "sbin/init", ""},
		{"init is a link", map[string]*tree.Node{"sbin/init": tree.NewSymlink("../bbin/init")}, "/sbin/init.smolvmm", nil, "sbin/init", ""},
		{"/sbin is a link", map[string]*tree.Node{"usr/sbin/init": file("own"), "sbin": tree.NewSymlink("usr/sbin")}, "/usr/sbin/init.smolvmm", nil, "usr/sbin/init", ""},
		{"/sbin leads nowhere", map[string]*tree.Node{"sbin": tree.NewSymlink("usr/sbin")}, "", nil, "", "/sbin leads nowhere"},
		{"/sbin is a file", map[string]*tree.Node{"sbin": file("x")}, "", nil, "", "/sbin is a file"},
		{"/dev is a file", map[string]*tree.Node{"dev": file("x")}, "", nil, "", "/dev is a file"},
	} {
		root := tree.New()
		for name, n := range c.put {
			must(t, root.Put(name, n))
		}
		before := lines(t, root)
		b, err := bootable(root, tree.Bytes("smolinit"))
		if c.refused != "" {
			if err == nil || !strings.Contains(err.Error(), c.refused) {
				t.Errorf("%s: %v", c.name, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		after := lines(t, b.tree)
		if b.init != c.init || !slices.Equal(b.remove, c.remove) || !strings.HasSuffix(after[c.place], `"smolinit"`) {
			t.Errorf("%s: init %q, remove %q, %s is %s", c.name, b.init, b.remove, c.place, after[c.place])
		}
		if c.init != "" && strings.HasSuffix(after[c.init[1:]], `"smolinit"`) {
			t.Errorf("%s: the image's own init is lost", c.name)
		}
		for _, d := range []string{"dev/console character device 0600 0:0 0,0", "dev/null character device 0666 0:0 2,2"} {
			name, want, _ := strings.Cut(d, " ")
			if after[name] != want {
				t.Errorf("%s: %s is %s", c.name, name, after[name])
			}
		}
		if d := compare(before, lines(t, root)); d != nil {
			t.Errorf("%s: the root itself: %q", c.name, d)
		}
	}
}

func TestDocument(t *testing.T) {
	step := builder.RunStep{
		Argv: []string{"/bin/sh", "-c", "x"}, Env: []string{"A=1", "B=two=2", "A=3"}, Cwd: "/srv", UID: 7, GID: 8, Groups: []uint32{9},
		Secrets: []builder.Secret{
			{ID: "weird id/!", Path: "/run/secrets/weird", Mode: 0o440, UID: 1, GID: 2, Data: []byte("a")},
			{ID: "netrc", Path: "/root/.netrc", Env: "NETRC", Data: []byte("b")},
		},
	}
	doc, items, err := document(step, &booting{init: "/sbin/init.smolvmm"}, 1<<20, 1000)
	must(t, err)
	b, err := json.Marshal(doc)
	must(t, err)
	want := `{"argv":["/bin/sh","-c","x"],"env":{"A":"3","B":"two=2"},"cwd":"/srv","uid":7,"gid":8,"groups":[9],` +
		`"secrets":{"s0":{"path":"/run/secrets/weird","mode":"0440","uid":1,"gid":2},"s1":{"env":"NETRC"},"s2":{"path":"/run/secrets/.smolvmm.s2","uid":0,"gid":0}},` +
		`"net":[],"quiet":true,"build":{"log":19,"size":1048576,"output":1000,"init":"/sbin/init.smolvmm","remove":null,"links":{"/root/.netrc":"/run/secrets/.smolvmm.s2"}}}`
	if string(b) != want {
		t.Errorf("%s\nwant\n%s", b, want)
	}
	if len(items) != 3 {
		t.Errorf("%d items", len(items))
	}
	if strings.Contains(string(b), `"b"`) {
		t.Error("a secret is in the document")
	}
	step.Network = true
	if doc, _, err = document(step, &booting{}, 1<<20, 0); err != nil || doc.Net != nil {
		t.Errorf("a step with a network: %v, %v", doc.Net, err)
	}
	step.Env = []string{"novalue"}
	if _, _, err = document(step, &booting{}, 1<<20, 0); err == nil {
		t.Error("an environment without a value")
	}
	if _, _, err = document(builder.RunStep{}, &booting{}, 1<<20, 0); err == nil {
		t.Error("a step without a command")
	}
	step = builder.RunStep{Argv: []string{"x"}, Secrets: []builder.Secret{{ID: "small", Path: "/y", Data: []byte("kept")}, {ID: "big", Path: "/x", Data: make([]byte, 17<<20)}}}
	if _, items, err = document(step, &booting{}, 1<<20, 0); err == nil || !strings.Contains(err.Error(), "secret big") {
		t.Errorf("a secret of 17 MiB: %v", err)
	}
	if len(items) != 1 || items[0].Len() != 0 {
		t.Errorf("the items of a step that cannot be: %v", items)
	}
}
