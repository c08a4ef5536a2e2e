package tree

import (
	"strings"
	"testing"
)

func TestAccounts(t *testing.T) {
	tr := New()
	a, err := tr.Accounts()
	must(t, err)
	if _, ok := a.UID("root"); ok {
		t.Error("a tree without accounts has root")
	}
	must(t, tr.Put("etc/passwd", NewFile(0o644, Bytes("root:*:0:0::0:0:x:/root:/bin/sh\nhttpd:*:24:25:&:/:/sbin/nologin\n"))))
	must(t, tr.Put("etc/group", NewFile(0o644, Bytes("# comment\nwheel:*:0:root\n\nbad:*:x:\n:*:7:\nhttpd:*:25\nwheel:*:99:\nshort:1\nhuge:*:4294967296:\n"))))
	a, err = tr.Accounts()
	must(t, err)
	if uid, gid, ok := a.Login("httpd"); !ok || uid != 24 || gid != 25 {
		t.Errorf("httpd: %d:%d %v", uid, gid, ok)
	}
	if gid, ok := a.GID("wheel"); !ok || gid != 0 {
		t.Errorf("wheel: %d %v", gid, ok)
	}
	for _, name := range []string{"bad", "", "short", "huge", "nobody", "# comment"} {
		if _, ok := a.GID(name); ok {
			t.Errorf("there is a group %q", name)
		}
	}
	// NetBSD's own file comes first, also when it is a link of the tree.
	must(t, tr.Put("var/accounts", NewFile(0o600, Bytes("smol:secret:1000:100::0:0:Smol:/home/smol:/bin/sh"))))
	must(t, tr.Put("etc/master.passwd", NewSymlink("/var/accounts")))
	a, err = tr.Accounts()
	must(t, err)
	if uid, ok := a.UID("smol"); !ok || uid != 1000 {
		t.Errorf("smol: %d %v", uid, ok)
	}
	must(t, tr.Put("etc/master.passwd", NewDir(0o755)))
	if _, err := tr.Accounts(); err == nil || !strings.Contains(err.Error(), "/etc/master.passwd") {
		t.Errorf("a directory of accounts: %v", err)
	}
	must(t, tr.Put("etc/master.passwd", NewFile(0o600, Ref{"", maxAccounts + 1})))
	if _, err := tr.Accounts(); err == nil {
		t.Error("a huge file of accounts was read")
	}
}
