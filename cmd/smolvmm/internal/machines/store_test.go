package machines

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

func newStore(t testing.TB) *Store {
	t.Helper()
	dir := t.TempDir()
	env := map[string]string{"XDG_DATA_HOME": filepath.Join(dir, "data"), "XDG_RUNTIME_DIR": filepath.Join(dir, "run")}
	if err := os.Mkdir(env["XDG_RUNTIME_DIR"], 0o700); err != nil {
		t.Fatal(err)
	}
	s, err := Open(func(k string) (string, bool) { v, ok := env[k]; return v, ok })
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func create(t testing.TB, s *Store, spec Spec) *Claim {
	t.Helper()
	c, err := s.Create(spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Release)
	return c
}

func get(t testing.TB, s *Store, name string) *Machine {
	t.Helper()
	m, err := s.Get(name)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// left lists all that a store's folders hold.
func left(t testing.TB, s *Store) (out []string) {
	t.Helper()
	for _, dir := range []string{s.data, s.run} {
		es, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range es {
			out = append(out, e.Name())
		}
	}
	return out
}

// TestLife is a machine's life as its files tell it.
func TestLife(t *testing.T) {
	s := newStore(t)
	c := create(t, s, Spec{Name: "web", Image: "img", CPUs: 2, Memory: 64 << 20, Created: time.Now()})
	if m := get(t, s, "web"); !m.Alive || m.State() != Starting || m.PID != os.Getpid() || m.Spec.CPUs != 2 {
		t.Errorf("%+v", m)
	}
	for _, r := range []Record{{State: Running, Addrs: []string{"a"}}, {State: Ready, Text: "mark 16"}} {
		if err := c.Note(r); err != nil {
			t.Fatal(err)
		}
		if m := get(t, s, "web"); m.State() != Running || m.Ready != (r.State == Ready) || m.Addrs[0] != "a" || m.Started.IsZero() {
			t.Errorf("%+v", m)
		}
	}
	var running *RunningError
	if err := s.Remove("web"); !errors.As(err, &running) {
		t.Errorf("removed while it ran: %v", err)
	}
	if u, err := get(t, s, "web").Usage(); err != nil || u.Resident < 1<<20 {
		t.Errorf("%+v, %v", u, err)
	}
	if err := c.Note(Record{State: Ended, Status: 3, Text: "the guest exited"}); err != nil {
		t.Fatal(err)
	}
	c.Release()
	m := get(t, s, "web")
	if v := m.View(time.Now()); m.Alive || v.State != Ended || v.Status == nil || *v.Status != 3 || v.PID != 0 || v.How != "the guest exited" {
		t.Errorf("%+v", v)
	}
	if v, err := s.Outcome("web"); err != nil || *v.Status != 3 {
		t.Errorf("%+v, %v", v, err)
	}
	if err := s.Remove("web"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get("web"); !errors.Is(err, ErrNone) {
		t.Errorf("still there: %v", err)
	}
	if got := left(t, s); len(got) > 0 {
		t.Errorf("left: %q", got)
	}
}

// TestOneName: of many that want a name at once one gets it, and the others a
// clear error.
func TestOneName(t *testing.T) {
	s := newStore(t)
	var wg sync.WaitGroup
	got := make(chan *Claim, 50)
	for range cap(got) {
		wg.Go(func() {
			c, err := s.Create(Spec{Name: "one"})
			var used *InUseError
			switch {
			case err == nil:
				got <- c
			case !errors.As(err, &used) || !used.Running:
				t.Errorf("%v", err)
			}
		})
	}
	wg.Wait()
	if len(got) != 1 {
		t.Fatalf("%d got the name", len(got))
	}
	(<-got).Release()
	var used *InUseError
	if _, err := s.Create(Spec{Name: "one"}); !errors.As(err, &used) || used.Running || !strings.Contains(err.Error(), "smolvmm rm one") {
		t.Errorf("%v", err)
	}
	if got := left(t, s); len(got) != 2 { // its two folders
		t.Errorf("left: %q", got)
	}
}

// TestRaces: names made, removed and looked at by many at once: no error but the
// expected ones, and nothing left.
func TestRaces(t *testing.T) {
	s := newStore(t)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for n := range 25 {
				name := fmt.Sprintf("m%d", (i+n)%3)
				c, err := s.Create(Spec{Name: name, Remove: n%2 == 0})
				var used *InUseError
				if err != nil && !errors.As(err, &used) {
					t.Errorf("create: %v", err)
				}
				if _, err := s.List(); err != nil {
					t.Errorf("list: %v", err)
				}
				if c != nil {
					if m := get(t, s, name); !m.Alive || m.PID != os.Getpid() {
						t.Errorf("ours is %+v", m)
					}
					c.Release()
				}
				var running *RunningError
				if err := s.Remove(name); err != nil && !errors.Is(err, ErrNone) && !errors.As(err, &running) {
					t.Errorf("remove: %v", err)
				}
			}
		})
	}
	wg.Wait()
	if _, err := s.Cleanup(true); err != nil {
		t.Fatal(err)
	}
	if got := left(t, s); len(got) > 0 {
		t.Errorf("left: %q", got)
	}
}

// TestCleanup: what dead machines left is removed, and only that.
func TestCleanup(t *testing.T) {
	s := newStore(t)
	alive := create(t, s, Spec{Name: "alive"})
	ended := create(t, s, Spec{Name: "ended"})
	_ = ended.Note(Record{State: Ended})
	ended.Release()
	gone := create(t, s, Spec{Name: "gone", Remove: true})
	_ = gone.Note(Record{State: Ended})
	gone.Release()
	dir := t.TempDir()
	dead := create(t, s, Spec{Name: "dead", Sockets: []string{filepath.Join(dir, "port"), filepath.Join(dir, "file")}})
	for _, p := range []string{dead.Spec.Socket, filepath.Join(dir, "port")} {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: p, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		l.SetUnlinkOnClose(false)
		l.Close()
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_ = dead.Note(Record{State: Running})
	_ = dead.Note(Record{State: Ready})
	dead.Release() // no record of its end: as if killed
	if m := get(t, s, "dead"); m.State() != Dead || m.View(time.Now()).Uptime != 0 {
		t.Errorf("%+v", m)
	}
	for _, n := range []string{".old-1", ".new-1"} {
		if err := os.MkdirAll(filepath.Join(s.data, n, "x"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	long := time.Now().Add(-time.Hour)
	if err := os.Chtimes(filepath.Join(s.data, ".new-1"), long, long); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(s.run, "nobodys"), 0o700); err != nil {
		t.Fatal(err)
	}
	removed, err := s.Cleanup(false)
	if err != nil || fmt.Sprint(removed) != "[dead gone]" {
		t.Errorf("%q, %v", removed, err)
	}
	log, err := os.ReadFile(s.AuditLog())
	if err != nil || bytes.Count(log, []byte("\n")) != 2 || !regexp.MustCompile(`"machine-removed","machine":"dead","reason":"user \d+: smolvmm cleanup: its process was killed"`).Match(log) {
		t.Errorf("the audit log: %v\n%s", err, log)
	}
	if got := left(t, s); fmt.Sprint(got) != "[alive ended alive ended]" {
		t.Errorf("left: %q", got)
	}
	if es, _ := os.ReadDir(dir); len(es) != 1 || es[0].Name() != "file" {
		t.Errorf("of published sockets and a file there are %v", es)
	}
	if removed, err := s.Cleanup(true); err != nil || fmt.Sprint(removed) != "[ended]" {
		t.Errorf("%q, %v", removed, err)
	}
	alive.Release()
}

// TestFolders: folders that others could have made or can look into are refused.
func TestFolders(t *testing.T) {
	dir := t.TempDir()
	at := func(data, run string) error {
		env := map[string]string{"XDG_DATA_HOME": data, "XDG_RUNTIME_DIR": run}
		_, err := Open(func(k string) (string, bool) { v, ok := env[k]; return v, ok })
		return err
	}
	mk := func(name string, mode fs.FileMode) string {
		p := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(p, 0o700), os.Chmod(p, mode)); err != nil {
			t.Fatal(err)
		}
		return p
	}
	run := mk("run", 0o700)
	if err := at(mk("good", 0o755), run); err != nil {
		t.Errorf("a home that others can read: %v", err)
	}
	mk("open/smolvmm/machines", 0o755)
	if err := at(filepath.Join(dir, "open"), run); err == nil || !strings.Contains(err.Error(), "chmod 700") {
		t.Errorf("machines that others can read: %v", err)
	}
	mk("group/smolvmm", 0o775)
	if err := at(filepath.Join(dir, "group"), run); err == nil {
		t.Error("a folder that the group can write to was taken")
	}
	mk("link/smolvmm", 0o700)
	if err := os.Symlink(mk("elsewhere", 0o700), filepath.Join(dir, "link/smolvmm/machines")); err != nil {
		t.Fatal(err)
	}
	if err := at(filepath.Join(dir, "link"), run); err == nil || !strings.Contains(err.Error(), "link") {
		t.Errorf("a link instead of the machines: %v", err)
	}
	if err := at("relative", run); err == nil || !strings.Contains(err.Error(), "HOME") {
		t.Errorf("a relative data folder and no home: %v", err)
	}
	for _, name := range []string{"", ".", "..", "a/b", "A", "-a", "a-", "a.b", strings.Repeat("a", 64)} {
		if CheckName(name) == nil {
			t.Errorf("%q was taken for a name", name)
		}
	}
	for try := range 20 {
		if err := CheckName(RandomName(try)); err != nil {
			t.Error(err)
		}
	}
}

// TestBroken: files that somebody else has been at make a machine that can be seen
// and removed, and nothing worse.
func TestBroken(t *testing.T) {
	s := newStore(t)
	for name, breakIt := range map[string]func(dir string) error{
		"nospec":   func(d string) error { return os.Remove(filepath.Join(d, specName)) },
		"badspec":  func(d string) error { return os.WriteFile(filepath.Join(d, specName), []byte("{"), 0o600) },
		"hugespec": func(d string) error { return os.Truncate(filepath.Join(d, specName), 1<<30) },
		"journal":  func(d string) error { return os.WriteFile(filepath.Join(d, journalName), []byte("x\n{}\n{"), 0o600) },
		"nolock":   func(d string) error { return os.Remove(filepath.Join(d, lockName)) },
		"linked": func(d string) error {
			return errors.Join(os.Remove(filepath.Join(d, journalName)), os.Symlink("/etc/passwd", filepath.Join(d, journalName)))
		},
	} {
		c := create(t, s, Spec{Name: name})
		c.Release()
		if err := breakIt(c.Dir()); err != nil {
			t.Fatal(err)
		}
		m := get(t, s, name)
		if m.Alive || m.Spec.Name != name {
			t.Errorf("%s: %+v", name, m)
		}
		var b bytes.Buffer
		if err := Table(&b, []View{m.View(time.Now())}); err != nil || !strings.Contains(b.String(), name) {
			t.Errorf("%s: %v\n%s", name, err, b.String())
		}
		if err := s.Remove(name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got := left(t, s); len(got) > 0 {
		t.Errorf("left: %q", got)
	}
}

// TestLockOf: a folder that goes and comes again never seems to have no lock, which
// would have a machine removed that has just been made.
func TestLockOf(t *testing.T) {
	s := newStore(t)
	over := make(chan struct{})
	go func() {
		defer close(over)
		path := filepath.Join(s.data, "m")
		var err error
		for i := 0; err == nil && i < 1500; i++ { // none comes twice
			f := filepath.Join(s.data, newPrefix+strconv.Itoa(i))
			err = errors.Join(os.Mkdir(f, 0o700), os.WriteFile(filepath.Join(f, lockName), nil, 0o600))
		}
		for i := 0; err == nil && i < 1500; i++ {
			f := filepath.Join(s.data, newPrefix+strconv.Itoa(i))
			err = errors.Join(os.Rename(f, path), os.Rename(path, f), os.Remove(filepath.Join(f, lockName)))
		}
		if err != nil {
			t.Error(err)
		}
	}()
	for {
		f, err := s.lockOf("m")
		switch {
		case errors.Is(err, ErrNone):
		case err != nil:
			t.Fatal(err)
		case f == nil:
			t.Fatal("a folder without a lock")
		default:
			f.Close()
		}
		select {
		case <-over:
			return
		default:
		}
	}
}

// TestForgedJournal: a process that its guest has taken can write what it likes
// into its journal, and has no other process killed, and no terminal steered, by that.
func TestForgedJournal(t *testing.T) {
	s := newStore(t)
	victim := exec.Command("sleep", "60")
	if err := victim.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = victim.Process.Kill(); _ = victim.Wait() }()
	c := create(t, s, Spec{Name: "taken"})
	defer c.Release()
	forged := fmt.Sprintf(`{"state":"starting","pid":%d}`, victim.Process.Pid) + "\n" +
		`{"state":"running","addrs":["\u001b[2J"],"text":"\u001b]0;x\u0007"}` + "\n"
	if _, err := c.journal.WriteString(forged); err != nil {
		t.Fatal(err)
	}
	m := get(t, s, "taken")
	if m.PID != os.Getpid() {
		t.Fatalf("a signal would go to process %d, which is the guest's choice", m.PID)
	}
	v := m.View(time.Now())
	m.Alive = false
	if text := strings.Join(v.Ports, "") + m.View(time.Now()).How; strings.ContainsAny(text, "\x1b\a") || !strings.Contains(text, "[2J") {
		t.Errorf("what is shown: %q", text)
	}
	// However full the journal is, its process can be found.
	if _, err := c.journal.Write(make([]byte, maxJournal)); err != nil {
		t.Fatal(err)
	}
	if m := get(t, s, "taken"); m.PID != os.Getpid() || !m.Alive {
		t.Errorf("with a full journal: %+v", m)
	}
}

// TestFollow: logs -f gives what is printed as it is, and ends with the machine.
func TestFollow(t *testing.T) {
	s := newStore(t)
	c := create(t, s, Spec{Name: "talker"})
	out := make(chan string, 100)
	done := make(chan error, 1)
	go func() {
		done <- s.Logs(t.Context(), "talker", LogOptions{Follow: true, Tail: 1}, writerFunc(func(p []byte) { out <- string(p) }))
	}()
	w := c.Console.Stream(Console)
	_, _ = c.Console.Stream(Monitor).Write([]byte("not this\n"))
	var got string
	for i := range 100 {
		_, _ = fmt.Fprintf(w, "line %d\n", i)
		if i == 50 {
			// Somebody who only looks, or would remove it, does not end it.
			if err := s.Remove("talker"); err == nil {
				t.Error("removed")
			}
		}
		for !strings.HasSuffix(got, fmt.Sprintf("line %d\n", i)) {
			select {
			case p := <-out:
				got += p
			case err := <-done:
				t.Fatalf("ended: %v\n%s", err, got)
			case <-time.After(10 * time.Second):
				t.Fatalf("nothing comes after\n%s", got)
			}
		}
	}
	_, _ = fmt.Fprint(w, "last words")
	c.Release()
	if err := <-done; err != nil {
		t.Error(err)
	}
	close(out)
	for p := range out {
		got += p
	}
	if strings.Contains(got, "not this") || !strings.HasSuffix(got, "last words") {
		t.Errorf("%s", got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	live := create(t, s, Spec{Name: "live"})
	if err := s.Logs(ctx, "live", LogOptions{Follow: true, Tail: -1}, writerFunc(func([]byte) {})); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	live.Release()
}

type writerFunc func(p []byte)

func (f writerFunc) Write(p []byte) (int, error) { f(p); return len(p), nil }

// TestSince: a log from a time on, with times.
func TestSince(t *testing.T) {
	s := newStore(t)
	c := create(t, s, Spec{Name: "m"})
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	c.Console.now = func() time.Time { at = at.Add(time.Minute); return at }
	for i := range 5 {
		_, _ = fmt.Fprintf(c.Console.Stream(Console), "%d\n", i)
	}
	c.Release()
	var b bytes.Buffer
	if err := s.Logs(t.Context(), "m", LogOptions{Since: at.Add(-time.Minute), Tail: -1, Times: true}, &b); err != nil {
		t.Fatal(err)
	}
	if want := "2026-01-02T03:08:05.000000Z 3\n2026-01-02T03:09:05.000000Z 4\n"; b.String() != want {
		t.Errorf("%q, want %q", b.String(), want)
	}
}

// TestAudit: a line of JSON each, whoever writes.
func TestAudit(t *testing.T) {
	s := newStore(t)
	m := &Machine{Spec: Spec{Name: "m"}}
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if err := s.Audit(m, AuditStop, "line\n\x1b[31m"+strings.Repeat("x", 600)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	b, err := os.ReadFile(s.AuditLog())
	if err != nil || bytes.Count(b, []byte("\n")) != 50 {
		t.Fatalf("%v\n%s", err, b)
	}
	for line := range bytes.Lines(b) {
		var e map[string]string
		if err := json.Unmarshal(line, &e); err != nil || e["machine"] != "m" || e["event"] != AuditStop {
			t.Errorf("%s: %v", line, err)
		}
	}
}
