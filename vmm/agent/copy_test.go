package agent

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// lockedBuffer is a buffer that another goroutine fills.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
	c  sync.Cond
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.c.L != nil {
		l.c.Broadcast()
	}
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// wait returns when s is there.
func (l *lockedBuffer) wait(s string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.c.L = &l.mu
	for !strings.Contains(l.b.String(), s) {
		l.c.Wait()
	}
}

// sample is a tree with everything a copy takes, and what it leaves out.
func sample(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "tree")
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	check(os.MkdirAll(filepath.Join(dir, "a/b/empty"), 0o755))
	big := make([]byte, 300_000)
	_, _ = rand.NewChaCha8([32]byte{3}).Read(big)
	copy(big[8192:], make([]byte, 3*holeSize))
	check(os.WriteFile(filepath.Join(dir, "a/big"), big, 0o640))
	check(os.WriteFile(filepath.Join(dir, "a/b/run me"), []byte("#!/bin/sh\n"), 0o755))
	check(os.WriteFile(filepath.Join(dir, "nothing"), nil, 0o600))
	hole, err := os.Create(filepath.Join(dir, "hole"))
	check(err)
	check(hole.Truncate(64 << 20))
	_, err = hole.WriteAt([]byte("in the middle"), 32<<20+5)
	check(err)
	check(hole.Close())
	check(os.Symlink("../outside", filepath.Join(dir, "a/link")))
	check(syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o600))
	old := time.Unix(1_000_000_000, 123_000_000)
	check(os.Chtimes(filepath.Join(dir, "a/big"), old, old))
	check(os.Chmod(filepath.Join(dir, "a/b"), 0o500))
	t.Cleanup(func() { os.Chmod(filepath.Join(dir, "a/b"), 0o700) })
	check(os.Chtimes(filepath.Join(dir, "a"), old, old))
	return dir
}

// same compares trees: names, kinds, modes, times, bytes, targets.
func same(t *testing.T, a, b string) {
	t.Helper()
	n := 0
	err := filepath.WalkDir(a, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.Type() == fs.ModeNamedPipe {
			return err
		}
		n++
		q := b + strings.TrimPrefix(p, a)
		x, err := os.Lstat(p)
		if err != nil {
			return err
		}
		y, err := os.Lstat(q)
		if err != nil {
			return err
		}
		link := x.Mode()&fs.ModeSymlink != 0
		if x.Mode() != y.Mode() || !link && !x.ModTime().Equal(y.ModTime()) {
			t.Errorf("%s: %v %v, %v %v", q, x.Mode(), x.ModTime(), y.Mode(), y.ModTime())
		}
		if link {
			s, _ := os.Readlink(p)
			u, _ := os.Readlink(q)
			if s != u {
				t.Errorf("%s leads to %q, not %q", q, u, s)
			}
		} else if x.Mode().IsRegular() {
			s, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			u, err := os.ReadFile(q)
			if err != nil || !bytes.Equal(s, u) {
				t.Errorf("%s: the bytes differ: %v", q, err)
			}
			if x.Sys().(*syscall.Stat_t).Blocks+64 < y.Sys().(*syscall.Stat_t).Blocks {
				t.Errorf("%s: its holes are filled", q)
			}
		}
		return nil
	})
	if err != nil || n < 5 {
		t.Errorf("%d compared: %v", n, err)
	}
}

func TestFetch(t *testing.T) {
	src, dest := sample(t), t.TempDir()
	host, guest := pair(t)
	guestDoes(t, guest, OpRead, func(c *Conn) {
		skipped, err := SendTree(c, src, false)
		if err != nil || len(skipped) != 1 || skipped[0] != "pipe" {
			t.Errorf("%v, %v", skipped, err)
		}
	})
	place, err := PlaceOf(dest)
	if err != nil {
		t.Fatal(err)
	}
	n, err := Fetch(t.Context(), host, "/some/tree/", false, place)
	if err != nil || n == 0 || n > 500_000 {
		t.Fatalf("%d bytes, %v", n, err)
	}
	same(t, src, filepath.Join(dest, "tree"))
	t.Cleanup(func() { os.Chmod(filepath.Join(dest, "tree/a/b"), 0o700) })
}

func TestStore(t *testing.T) {
	src, dest := sample(t), t.TempDir()
	for _, c := range []struct{ from, to, want string }{
		{src, dest + "/new", "new"}, {src, dest, "tree"}, {src + "/a/big", dest + "/file", "file"}, {src + "/a/link", dest, "link"},
	} {
		host, guest := pair(t)
		guestDoes(t, guest, OpWrite, func(conn *Conn) {
			place, err := PlaceOf(c.to)
			if err == nil {
				_, err = ReceiveTree(conn, place)
			}
			if err != nil {
				_ = conn.SendError(err)
				return
			}
			_ = conn.Send(TypeDone)
		})
		if _, err := Store(t.Context(), host, c.from, false, c.to); err != nil {
			t.Errorf("%s: %v", c.to, err)
			continue
		}
		if c.want == "new" || c.want == "tree" {
			same(t, c.from, filepath.Join(dest, c.want))
			os.Chmod(filepath.Join(dest, c.want, "a/b"), 0o700)
		} else if _, err := os.Lstat(filepath.Join(dest, c.want)); err != nil {
			t.Error(err)
		}
	}
	left, _ := filepath.Glob(dest + "/.smolvmm-*")
	if len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestStoreRefused: the guest's words reach the caller, not a broken pipe.
func TestStoreRefused(t *testing.T) {
	host, guest := pair(t)
	guestDoes(t, guest, OpWrite, func(c *Conn) { _ = c.SendError(errors.New("the disk is full")) })
	if _, err := Store(t.Context(), host, sample(t), false, "/x"); err == nil || err.Error() != "the disk is full" {
		t.Errorf("%v", err)
	}
	host, guest = pair(t)
	guestDoes(t, guest, OpWrite, func(c *Conn) { _, _ = ReceiveTree(c, Place{t.TempDir(), "x"}) })
	if _, err := Store(t.Context(), host, "/no/such/file", false, "/x"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
}

// entry is a frame's payload.
func entry(e Entry) []byte { b, _ := json.Marshal(e); return b }

// data is a data frame's payload.
func data(off uint64, p string) []byte {
	return append(binary.LittleEndian.AppendUint64(nil, off), p...)
}

type frame struct {
	t Type
	p []byte
}

// TestHostileCopy: nothing outside the place is written or made, whatever comes.
func TestHostileCopy(t *testing.T) {
	folder := frame{TypeEntry, entry(Entry{Name: ".", Base: "d", Kind: KindFolder, Mode: 0o755})}
	file := func(name string) frame {
		return frame{TypeEntry, entry(Entry{Name: name, Base: "d", Kind: KindFile, Size: 4, Mode: 0o4755})}
	}
	link := func(name, target string) frame {
		return frame{TypeEntry, entry(Entry{Name: name, Base: "d", Kind: KindLink, Target: target})}
	}
	evil := frame{TypeData, data(0, "evil")}
	done := frame{TypeDone, nil}
	for name, frames := range map[string][]frame{
		"parent":                 {folder, file("../victim"), evil, done},
		"absolute":               {folder, file("/victim"), evil, done},
		"dots within":            {folder, file("a/../../victim"), evil, done},
		"through a link":         {folder, link("l", ".."), file("l/victim"), evil, done},
		"through an absolute":    {folder, link("l", "@"), file("l/victim"), evil, done},
		"a base with a slash":    {{TypeEntry, entry(Entry{Name: ".", Base: "../victim", Kind: KindFile, Size: 4})}, evil, done},
		"a base of dots":         {{TypeEntry, entry(Entry{Name: ".", Base: "..", Kind: KindFile, Size: 4})}, evil, done},
		"no base":                {{TypeEntry, entry(Entry{Name: ".", Kind: KindFile, Size: 4})}, evil, done},
		"first is below":         {file("victim"), evil, done},
		"two firsts":             {folder, folder, done},
		"behind a file":          {file("."), evil, file("victim"), evil, done},
		"behind a link":          {link(".", ".."), file("victim"), evil, done},
		"data of nothing":        {evil, done},
		"data of a folder":       {folder, evil, done},
		"data behind the end":    {folder, file("f"), {TypeData, data(1, "evil")}, done},
		"data far away":          {folder, file("f"), {TypeData, data(1<<63, "evil")}, done},
		"data wraps":             {folder, file("f"), {TypeData, data(1<<64-2, "evil")}, done},
		"a short data frame":     {folder, file("f"), {TypeData, []byte("1234")}, done},
		"nothing":                {done},
		"a negative size":        {folder, {TypeEntry, entry(Entry{Name: "f", Kind: KindFile, Size: -1})}, done},
		"a sized folder":         {folder, {TypeEntry, entry(Entry{Name: "f", Kind: KindFolder, Size: 9})}, done},
		"a device":               {folder, {TypeEntry, entry(Entry{Name: "f", Kind: "device"})}, done},
		"a link to nothing":      {folder, {TypeEntry, entry(Entry{Name: "f", Kind: KindLink})}, done},
		"a file over a folder":   {folder, {TypeEntry, entry(Entry{Name: "f", Kind: KindFolder})}, file("f"), evil, done},
		"a link over the folder": {folder, {TypeEntry, entry(Entry{Name: "f", Kind: KindFolder})}, link("f", "@"), file("f/victim"), evil, done},
		"no JSON":                {{TypeEntry, []byte("{")}},
		"a request":              {folder, {TypeRequest, []byte("{}")}},
		"cut short":              {folder, file("f"), evil},
	} {
		t.Run(name, func(t *testing.T) {
			outside := t.TempDir()
			dir := filepath.Join(outside, "in")
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(outside, "victim"), []byte("mine"), 0o600); err != nil {
				t.Fatal(err)
			}
			host, guest := pair(t)
			go func() {
				defer guest.Close()
				c := NewConn(guest)
				for _, f := range frames {
					if c.Send(f.t, bytes.ReplaceAll(f.p, []byte("@"), []byte(outside))) != nil {
						return
					}
				}
			}()
			if _, err := ReceiveTree(NewConn(host), Place{Dir: dir}); err == nil {
				t.Error("it was taken")
			}
			host.Close()
			if b, err := os.ReadFile(filepath.Join(outside, "victim")); err != nil || string(b) != "mine" {
				t.Errorf("what lies outside: %q, %v", b, err)
			}
			all, err := os.ReadDir(outside)
			if err != nil || len(all) != 2 {
				t.Errorf("outside are %v, %v", all, err)
			}
			_ = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
				if strings.HasPrefix(filepath.Base(p), ".smolvmm-") {
					t.Errorf("left behind: %s", p)
				}
				if d != nil {
					if i, err := d.Info(); err == nil && i.Mode()&(fs.ModeSetuid|fs.ModeSetgid) != 0 {
						t.Errorf("%s has mode %v", p, i.Mode())
					}
				}
				return err
			})
		})
	}
}

// TestFetchedName: what a copy into a folder is called, the caller has said with
// the path that was asked for. A guest that could say would have its choice of the
// folder's files.
func TestFetchedName(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/.profile", []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, k := range []EntryKind{KindFile, KindFolder} {
		host, guest := pair(t)
		guestDoes(t, guest, OpRead, func(c *Conn) {
			_ = c.SendJSON(TypeEntry, Entry{Name: ".", Base: ".profile", Kind: k, Mode: 0o600})
			_ = c.Send(TypeDone)
		})
		if _, err := Fetch(t.Context(), host, "/var/log/report-"+string(k), false, Place{Dir: dir}); err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(dir + "/report-" + string(k)); err != nil {
			t.Error(err)
		}
	}
	if b, err := os.ReadFile(dir + "/.profile"); err != nil || string(b) != "mine" {
		t.Errorf("%q, %v", b, err)
	}
	for _, from := range []string{"/", ".", "..", "a/../.."} {
		host, guest := pair(t)
		guest.Close()
		if _, err := Fetch(t.Context(), host, from, false, Place{Dir: dir}); !errors.Is(err, errNoName) {
			t.Errorf("%s: %v", from, err)
		}
	}
}

// TestNoName: what has no name of its own can be copied to a new name.
func TestNoName(t *testing.T) {
	dir := sample(t)
	t.Chdir(dir)
	for name, want := range map[string]error{"new": nil, "": errNoName} {
		host, guest := pair(t)
		dest := t.TempDir()
		go func() {
			_, _ = SendTree(NewConn(guest), ".", false)
			guest.Close()
		}()
		_, err := ReceiveTree(NewConn(host), Place{dest, name})
		host.Close()
		if !errors.Is(err, want) {
			t.Errorf("%q: %v", name, err)
		}
		if want == nil {
			same(t, dir, filepath.Join(dest, name))
			os.Chmod(filepath.Join(dest, name, "a/b"), 0o700)
		}
	}
}

// TestNotUTF8: two files whose names JSON cannot tell from each other must not
// become one; no argument becomes another.
func TestNotUTF8(t *testing.T) {
	for _, c := range []struct{ name, target string }{{"\xfe", ""}, {"l", "\xfe"}} {
		dir := t.TempDir()
		var err error
		if c.target != "" {
			err = os.Symlink(c.target, filepath.Join(dir, c.name))
		} else {
			err = os.WriteFile(filepath.Join(dir, c.name), []byte("1"), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, from := range []string{dir, filepath.Join(dir, c.name)} {
			var out bytes.Buffer
			if _, err := SendTree(NewConn(&out), from, false); err == nil || !strings.Contains(err.Error(), "UTF-8") {
				t.Errorf("%q: %v", from, err)
			}
		}
	}
	for _, r := range []Request{{Argv: []string{"echo", "\xff"}}, {Env: []string{"A=\xff"}}, {Cwd: "\xff"}, {User: "\xff"}, {Path: "\xff"}} {
		var out bytes.Buffer
		if err := NewConn(&out).request(r); err == nil || out.Len() > 0 {
			t.Errorf("%+v: %v, %d bytes sent", r, err, out.Len())
		}
	}
}

func TestPlaceOf(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/f", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for dest, want := range map[string]Place{
		dir: {Dir: dir}, dir + "/": {Dir: dir + "/"}, dir + "/f": {dir + "/", "f"}, dir + "/new": {dir + "/", "new"}, "new": {".", "new"},
	} {
		if got, err := PlaceOf(dest); err != nil || got != want {
			t.Errorf("%s: %v, %v", dest, got, err)
		}
	}
	for _, dest := range []string{"", dir + "/no/", dir + "/f/"} {
		if got, err := PlaceOf(dest); err == nil {
			t.Errorf("%q: %v", dest, got)
		}
	}
}

// FuzzReceive: what a guest sends for a copy writes nothing outside the folder.
func FuzzReceive(f *testing.F) {
	seed := func(frames ...frame) {
		var b bytes.Buffer
		c := NewConn(&b)
		for _, f := range frames {
			_ = c.Send(f.t, f.p)
		}
		f.Add(b.Bytes())
	}
	folder := frame{TypeEntry, entry(Entry{Name: ".", Base: "d", Kind: KindFolder, Mode: 0o755})}
	seed(folder, frame{TypeEntry, entry(Entry{Name: "f", Kind: KindFile, Size: 9, Mode: 0o600})}, frame{TypeData, data(3, "bytes")},
		frame{TypeEntry, entry(Entry{Name: "l", Kind: KindLink, Target: ".."})}, frame{TypeEntry, entry(Entry{Name: "l/g", Kind: KindFile})}, frame{TypeDone, nil})
	seed(frame{TypeEntry, entry(Entry{Name: ".", Base: "f", Kind: KindFile, Size: 4})}, frame{TypeData, data(0, "four")}, frame{TypeDone, nil})
	f.Fuzz(func(t *testing.T, in []byte) {
		outside := t.TempDir()
		dir := filepath.Join(outside, "in")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		_, err := ReceiveTree(NewConn(bytes.NewBuffer(in)), Place{Dir: dir})
		if all, rerr := os.ReadDir(outside); rerr != nil || len(all) != 1 {
			t.Fatalf("outside are %v, %v (%v)", all, rerr, err)
		}
	})
}

// FuzzReceiveExec: what a guest sends while a command runs ends it or is given out.
func FuzzReceiveExec(f *testing.F) {
	var b bytes.Buffer
	c := NewConn(&b)
	_ = c.SendJSON(TypeStarted, Started{PID: 3})
	_ = c.Send(TypeStdout, []byte("out"))
	_ = c.Send(TypeCredit, []byte{0, 1, 0, 0})
	_ = c.Send(TypeStderr, []byte("err"))
	_ = c.SendJSON(TypeExit, Status{Code: 3})
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, in []byte) {
		host, guest := net.Pipe()
		go func() {
			go func() {
				buf := make([]byte, 4096)
				for {
					if _, err := guest.Read(buf); err != nil {
						return
					}
				}
			}()
			_, _ = guest.Write(in)
			guest.Close()
		}()
		var out bytes.Buffer
		p, err := Start(t.Context(), host, Command{Argv: []string{"x"}, Stdin: strings.NewReader("input"), Stdout: &out, Stderr: &out})
		if err == nil {
			_, err = p.Wait()
		}
		host.Close()
		if out.Len() > len(in) {
			t.Errorf("%d bytes given out of %d (%v)", out.Len(), len(in), err)
		}
	})
}
