package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/clitest"
)

// TestItems is the table of what the configuration flags give the guest: names
// and sizes here; TestTraceHidesItems sees a value reach the guest.
func TestItems(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "a,b=c")
	if err := os.WriteFile(file, []byte("12345"), 0o600); err != nil {
		t.Fatal(err)
	}
	env := map[string]string{"SET": "abc", "EMPTY": ""}
	twice := strings.ReplaceAll(file, ",", ",,")
	for _, c := range []struct {
		b    BootFlags
		argv []string
		want []string // "name size"
		err  string
	}{
		{BootFlags{}, nil, nil, ""},
		{BootFlags{Env: []string{"A=1", "B=", "SET", "EMPTY", "C=x=y,z"}}, nil, []string{
			"opt/smolvmm/env/A 1", "opt/smolvmm/env/B 0", "opt/smolvmm/env/SET 3", "opt/smolvmm/env/EMPTY 0", "opt/smolvmm/env/C 5"}, ""},
		{BootFlags{Files: []string{"etc=" + file}}, nil, []string{"opt/smolvmm/file/etc 5"}, ""},
		{BootFlags{Secrets: []string{"SET", "key=@" + file}}, nil, []string{"opt/smolvmm/secret/SET 3", "opt/smolvmm/secret/key 5"}, ""},
		{BootFlags{Fwcfg: []string{"name=opt/x,string=a,,b", "opt/y,string=", "name=opt/z,file=" + twice}}, nil, []string{"opt/x 3", "opt/y 0", "opt/z 5"}, ""},
		{BootFlags{}, []string{"/bin/sh", "-c", "exit 3"}, []string{"opt/smolvmm/init.json 34"}, ""},

		{BootFlags{Env: []string{"=hush"}}, nil, nil, "-env: a variable needs a name"},
		{BootFlags{Env: []string{"UNSET"}}, nil, nil, "-env UNSET: not set in the environment"},
		{BootFlags{Env: []string{"A=hush", "A=hush2"}}, nil, nil, "opt/smolvmm/env/A is given twice"},
		{BootFlags{Env: []string{longName(50) + "=hush"}}, nil, nil, "longer than 55 bytes"},
		{BootFlags{Files: []string{"x"}}, nil, nil, "must be NAME=FILE"},
		{BootFlags{Files: []string{"x="}}, nil, nil, "must be NAME=FILE"},
		{BootFlags{Files: []string{"x=/no/such"}}, nil, nil, "-file x: /no/such: no such file or directory"},
		{BootFlags{Files: []string{"x=" + dir}}, nil, nil, "is a directory"},
		{BootFlags{Secrets: []string{""}}, nil, nil, "a secret needs a name"},
		{BootFlags{Secrets: []string{"=hush"}}, nil, nil, "a secret needs a name"},
		{BootFlags{Secrets: []string{"K=hush"}}, nil, nil, "-secret K=…: a value on the command line is there for ps to see"},
		{BootFlags{Secrets: []string{"K="}}, nil, nil, "on the command line"},
		{BootFlags{Secrets: []string{"K=@"}}, nil, nil, "no file named"},
		{BootFlags{Secrets: []string{"K=@/no"}}, nil, nil, "-secret K: /no: no such file or directory"},
		{BootFlags{Secrets: []string{"UNSET"}}, nil, nil, "-secret UNSET: not set in the environment"},
		{BootFlags{Fwcfg: []string{"string=hush"}}, nil, nil, "must be name=NAME,string=TEXT"},
		{BootFlags{Fwcfg: []string{"name=opt/x"}}, nil, nil, "must be name=NAME,string=TEXT"},
		{BootFlags{Fwcfg: []string{"name=opt/x,string=hush,file=" + twice}}, nil, nil, "must be name=NAME,string=TEXT"},
		{BootFlags{Fwcfg: []string{"name=opt/x,string=a,hush"}}, nil, nil, "must be name=NAME,string=TEXT"},
		{BootFlags{Fwcfg: []string{"name=opt/x,string=a,string=hush"}}, nil, nil, "must be name=NAME,string=TEXT"},
		{BootFlags{Fwcfg: []string{"name=x,string=hush"}}, nil, nil, `must begin with "opt/"`},
		{BootFlags{Fwcfg: []string{"name=opt/a b,string=hush"}}, nil, nil, "printable"},
	} {
		got, err := c.b.items(c.argv, false, func(k string) (string, bool) { v, ok := env[k]; return v, ok })
		var have []string
		for _, it := range got {
			have = append(have, fmt.Sprint(it.Name(), " ", it.Len()))
		}
		if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) || !slices.Equal(have, c.want) {
			t.Errorf("%+v %q: %q, %v; want %q, %q", c.b, c.argv, have, err, c.want, c.err)
		}
		if err != nil && strings.Contains(err.Error(), "hush") {
			t.Errorf("%+v: the error shows the value: %v", c.b, err)
		}
	}
}

// TestReadOnlyRootIsTold: smolinit learns that its root's disk cannot be written,
// unless the user's own configuration is there.
func TestReadOnlyRootIsTold(t *testing.T) {
	own := BootFlags{Fwcfg: []string{"name=opt/smolvmm/init.json,string={}"}}
	for _, c := range []struct {
		b    BootFlags
		argv []string
		size int // of init.json
	}{
		{BootFlags{}, nil, len(`{"root_readonly":true}`)},
		{BootFlags{}, []string{"a"}, len(`{"argv":["a"],"root_readonly":true}`)},
		{own, nil, len(`{}`)},
	} {
		got, err := c.b.items(c.argv, true, func(string) (string, bool) { return "", false })
		if err != nil || len(got) != 1 || got[0].Name() != itemInit || got[0].Len() != c.size {
			t.Errorf("%+v %q: %v, %v", c.b, c.argv, got, err)
		}
	}
}

// TestSecretsAreNotShown: a secret is in nothing that anyone but the guest
// reads: arguments, environment, log, trace, messages.
func TestSecretsAreNotShown(t *testing.T) {
	t.Parallel()
	clitest.NeedKVM(t)
	const byEnv, byFile = "swordfish-by-environment", "swordfish-by-file"
	dir := t.TempDir()
	file, kernel := filepath.Join(dir, "secret"), clitest.DemoKernel(t, dir)
	if err := os.WriteFile(file, []byte(byFile), 0o600); err != nil {
		t.Fatal(err)
	}
	c := clitest.Smolvmm(t, "-kernel", kernel, "-m", "64", "-append", "demo=spin", "-v", "-trace", "-console", "none",
		"-secret", "PASSWORD", "-secret", "key=@"+file, "-timeout", "1m")
	c.Env = append(c.Env, "PASSWORD="+byEnv, "OTHER=stays")
	r, w := clitest.Pipe(t)
	c.Stderr = w
	errs := clitest.NewTranscript()
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	errs.From(r)
	errs.Wait(t, "vcpu0 ") // the guest runs
	for _, name := range []string{"cmdline", "environ"} {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", c.Process.Pid, name))
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(b), "swordfish") {
			t.Errorf("/proc/PID/%s shows the secret: %q", name, b)
		}
		if name == "environ" && !strings.Contains(string(b), "OTHER=stays") {
			t.Errorf("/proc/PID/environ has lost more than the secret: %q", b)
		}
	}
	if err := c.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	_ = c.Wait()
	if got := clitest.StatusOfProcess(c.ProcessState); got != 128+15 {
		t.Errorf("status %d:\n%s", got, errs)
	}
	if strings.Contains(errs.String(), "swordfish") {
		t.Errorf("standard error shows the secret:\n%s", errs)
	}
}

// TestTraceHidesItems: what the guest reads of its configuration is not in the
// trace, neither as text nor in hexadecimal.
func TestTraceHidesItems(t *testing.T) {
	t.Parallel()
	clitest.NeedKVM(t)
	dir := t.TempDir()
	const value = "SwOrDfIsH"
	r := clitest.Finish(t, clitest.Smolvmm(t, "-kernel", clitest.DemoKernel(t, dir), "-m", "64", "-append", "demo=check,lax", "-trace",
		"-fw_cfg", "name=opt/demo/secret,string="+value))
	if r.Status != 0 {
		t.Fatalf("%+v", r)
	}
	clitest.MustContain(t, "the console", r.Out, "name=opt/demo/secret size=9 text="+value)
	var reads int
	for line := range strings.Lines(r.Err) {
		if !strings.Contains(line, "(fw_cfg)") {
			continue
		}
		if strings.Contains(line, " read ") {
			reads++
			if !strings.HasSuffix(line, "bytes\n") {
				t.Errorf("a read with its data: %s", line)
			}
		}
	}
	if reads == 0 {
		t.Error("no read of the data port is traced")
	}
}
