package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/smolvmm/smolvmm/builder/spec"
	"github.com/smolvmm/smolvmm/builder/store"
	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/cli"
	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/clitest"
	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/machines"
)

// resolved is what a line of `run` comes to, without a machine.
func resolved(t *testing.T, env map[string]string, args ...string) (r runFlags, argv []string, said string, err error) {
	t.Helper()
	var errs strings.Builder
	s := cli.Streams{Err: &errs, Env: func(k string) (string, bool) { v, ok := env[k]; return v, ok }}
	f := r.set()
	words, err := parseWords(f, args)
	if err == nil {
		err = r.readService(s)
	}
	if err == nil {
		argv, err = r.resolve(f, words, s)
	}
	return r, argv, errs.String(), err
}

func write(t testing.TB, path, text string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestRunWords: flags end at the image, and what stands behind it is the guest's.
func TestRunWords(t *testing.T) {
	dir := t.TempDir()
	img := write(t, filepath.Join(dir, "a,b.img"), "")
	for _, c := range []struct {
		args  []string
		image string
		argv  string
		disks []string
	}{
		{[]string{img, "ls", "-l"}, img, "[ls -l]", []string{dir + "/a,,b.img"}},
		{[]string{"-m", "64M", img, "--", "ls", "--", "-d"}, img, "[ls -- -d]", []string{dir + "/a,,b.img"}},
		{[]string{"-k", "netbsd", "--", "ls", "-d"}, "", "[ls -d]", nil},
		{[]string{"-k", "netbsd", "--disk", "x.img,ro"}, "x.img", "[]", []string{"x.img,ro"}},
		{[]string{"-v", img + ":/data:ro", "-v", img, "-k", "k", "--"}, "", "[]", []string{dir + "/a,,b.img,ro", dir + "/a,,b.img"}},
	} {
		r, argv, _, err := resolved(t, nil, c.args...)
		if c.disks != nil && c.image == "" {
			r.image = "" // named after the first disk
		}
		if err != nil || r.image != c.image || fmt.Sprint(argv) != c.argv || !slices.Equal(r.Disks, c.disks) {
			t.Errorf("%q: image %q, %q, disks %q, %v", c.args, r.image, argv, r.Disks, err)
		}
	}
	r, _, _, err := resolved(t, nil, "-v", img+":/data:ro", "--disk", "x", "-k", "k")
	want := []map[string]any{{"type": "ffs", "source": "/dev/ld1a", "target": "/data", "options": []string{"ro"}}}
	if err != nil || !reflect.DeepEqual(r.Init["mounts"], want) {
		t.Errorf("%v, %v", r.Init, err)
	}
	for args, want := range map[string]string{
		"":                             "no image",
		"/no/such.img":                 "no such file",
		"-k k -v /no/such":             "-volume /no/such",
		"-k k -v " + dir:               "cannot be shared",
		"-k k --env-file /no/such":     "-env-file /no/such",
		"--persist --verify k " + img:  "is a file",
		"-f /no/such.conf":             "-service /no/such.conf",
		"-k k --verify x":              "-verify",
		"--ready-timeout soon -k k":    "must be a length of time",
		"--detached":                   "did you mean -detach?",
		"no-such-image-is-in-any-test": "HOME",
	} {
		if _, _, _, err := resolved(t, nil, strings.Fields(args)...); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: %v, want %q", args, err, want)
		}
	}
}

// TestEnvFile: -e over the file, the later over the earlier, comments left out.
func TestEnvFile(t *testing.T) {
	dir := t.TempDir()
	one := write(t, filepath.Join(dir, "one"), "# comment\nA=1\nB=two words\n\n  C=3\nHOST\n")
	two := write(t, filepath.Join(dir, "two"), "A=2\n")
	r, _, _, err := resolved(t, nil, "-k", "k", "--env-file", one, "-e", "B=flag", "--env-file", two)
	slices.Sort(r.Env)
	if err != nil || fmt.Sprint(r.Env) != "[A=2 B=flag C=3 HOST]" {
		t.Errorf("%q, %v", r.Env, err)
	}
	bad := write(t, filepath.Join(dir, "bad"), "A=1\nmy secret=x\n")
	if _, _, _, err := resolved(t, nil, "-k", "k", "--env-file", bad); err == nil || !strings.Contains(err.Error(), "bad:2") || strings.Contains(err.Error(), "secret") {
		t.Errorf("%v", err)
	}
}

// TestService: a file with each of smolBSD's variables, and flags over it.
func TestService(t *testing.T) {
	dir := t.TempDir()
	disk := write(t, filepath.Join(dir, "data.img"), "")
	conf := write(t, filepath.Join(dir, "web.conf"), `
# optional
mem=128m   # as QEMU has it
cores=2
hostfwd=::8180-:80,udp::53-:53
append="-v foo"
root=NAME=webroot
img=`+disk+`
drive2=${DIR}/data.img
fwcfgvar="MOUNTRO=y,NAME='x y'"
share=$(pwd)
bridgenet=
sharerw="y"
use_pty=y
daemon=y
`)
	env := map[string]string{"DIR": dir}
	r, _, said, err := resolved(t, env, "-f", conf)
	if err != nil {
		t.Fatal(err)
	}
	if r.Memory != "128m" || r.CPUs != 2 || r.Append != "root=NAME=webroot -v foo" || r.image != disk || !r.detach ||
		fmt.Sprint(r.Net.Publish) != "[::8180-:80 udp::53-:53]" || !slices.Equal(r.Disks, []string{disk, disk}) ||
		fmt.Sprint(r.Env) != "[MOUNTRO=y NAME='x y']" || len(r.Fwcfg) != 2 || r.Fwcfg[0] != "name=opt/org.smolbsd.var.MOUNTRO,string=y" {
		t.Errorf("%+v", r)
	}
	if strings.Count(said, "\n") != 1 || !strings.Contains(said, "share is left out") {
		t.Errorf("said %q", said)
	}
	r, _, _, err = resolved(t, env, "-f", conf, "-m", "64M", "-p", "1:2", "-e", "MOUNTRO=n", "-a", "root=ld0a", disk)
	if err != nil || r.Memory != "64M" || r.CPUs != 2 || r.Append != "root=ld0a" || fmt.Sprint(r.Net.Publish) != "[1:2]" || !slices.Contains(r.Env, "MOUNTRO=n") || slices.Contains(r.Env, "MOUNTRO=y") {
		t.Errorf("flags over the file: %+v, %v", r, err)
	}
	for text, want := range map[string]string{
		"mem=1\nfoo":                    "web.conf:2: only assignments",
		"mem=$(nproc)":                  "web.conf:1: mem: $(…) runs a program",
		"mem=`nproc`":                   "runs a program",
		"mem=1 2":                       "needs quotes",
		"mem=\"1":                       "not closed",
		"meem=1":                        "did you mean mem?",
		"[ -f x ] && mem=1":             "only assignments",
		"mem=${x:-1}":                   "only ${NAME}",
		"mem=1; cores=2":                "only assignments",
		"cores=many":                    "cpus",
		"fwcfgvar=novalue\nimg=./x.img": "NAME=VALUE",
	} {
		write(t, conf, text)
		if _, _, _, err := resolved(t, env, "-f", conf); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

// FuzzService: a file from anywhere is read or refused, and is never longer read
// than written.
func FuzzService(f *testing.F) {
	f.Add("mem=128m\n# c\nhostfwd=::8180-:80\nfwcfgvar=\"A=1,B=$HOME\" # x\nshare=$(pwd)\n")
	f.Add("a='x'\"y\"z\\ w\n_b=$a${a}$a\nexport c=$_b")
	f.Fuzz(func(t *testing.T, text string) {
		vars, err := parseService(text, "/cwd", func(string) (string, bool) { return "v", true })
		if err == nil {
			for k := range vars {
				if !variableName(k) {
					t.Errorf("%q is a variable", k)
				}
			}
		}
	})
}

// TestMatcher: a line is found however it comes, prompts too, and a long one is
// looked at as far as the bound.
func TestMatcher(t *testing.T) {
	for _, c := range []struct {
		re, text string
		want     bool
	}{
		{"login: $", "NetBSD\r\nlogin: ", true},
		{"^ready$", "not ready\nready\r\n", true},
		{"^ready$", "not ready\nready set\n", false},
		{"x", strings.Repeat("-", 2*maxPrompt) + "x", false},
		{"x", strings.Repeat("-", 2*maxPrompt) + "\nx", true},
	} {
		for _, step := range []int{1, 3, len(c.text)} {
			r, err := parseReady("console:" + c.re)
			if err != nil {
				t.Fatal(err)
			}
			m, got := &matcher{re: r.regex}, false
			for p := []byte(c.text); len(p) > 0 && !got; p = p[min(step, len(p)):] {
				_, got = m.write(p[:min(step, len(p))])
			}
			// A byte at a time, every beginning of a line is one that may be the prompt.
			if got != c.want && step == len(c.text) {
				t.Errorf("%q in %.20q, %d at a time: %v", c.re, c.text, step, got)
			}
		}
	}
}

// TestRunImage: what an image says of its machine holds, and its disk stays as it is.
func TestRunImage(t *testing.T) {
	t.Parallel()
	y := newYard(t)
	data, _ := y.env("XDG_DATA_HOME")
	images, err := store.Open(filepath.Join(data, "smolvmm", "images"))
	if err != nil {
		t.Fatal(err)
	}
	name, err := spec.ParseReference("counter")
	if err != nil {
		t.Fatal(err)
	}
	disk, err := store.OpenFile(y.disk)
	if err != nil {
		t.Fatal(err)
	}
	kernel, err := store.OpenFile(y.kernel)
	if err != nil {
		t.Fatal(err)
	}
	e, err := images.Put(t.Context(), store.Put{Names: []spec.Reference{name}, Disk: disk, Kernel: kernel, Image: spec.Image{
		Architecture: "amd64", OS: "netbsd", Memory: 24 << 20, CPUs: 2, Publish: []string{"0:7/udp"},
		Config: spec.Config{Cmd: []string{"/bin/count"}, Env: []string{"A=1"}},
		Disk:   spec.Disk{Layout: spec.LayoutFFS, Root: "ld0a"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	y.do("run", "-d", "--name", "c", "-a", "demo=count", "counter", "--once")
	var got []struct {
		machines.View
		Spec machines.Spec
	}
	if err := json.Unmarshal([]byte(y.do("inspect", "c")), &got); err != nil {
		t.Fatal(err)
	}
	if v := got[0]; v.Image != "counter:latest" || v.Memory != 24<<20 || v.CPUs != 2 || len(v.Ports) == 0 || !strings.HasPrefix(v.Spec.Append, "root=ld0a ") {
		t.Errorf("%+v", v)
	}
	y.do("rm", "-f", "c")
	if err := images.Blobs().Verify(t.Context(), e.Disk.Digest()); err != nil {
		t.Errorf("the image's disk: %v", err)
	}
	if r := clitest.Finish(t, y.cmd("run", "--persist", "counter")); r.Status != 2 || !strings.Contains(r.Err, "stays as it is") {
		t.Errorf("%+v", r)
	}
	if r := clitest.Finish(t, y.cmd("run", "--verify", "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3", "counter")); r.Status != 2 || !strings.Contains(r.Err, "not signed") {
		t.Errorf("%+v", r)
	}
	// What pull calls an image has slashes, too.
	y.do("tag", "counter", "127.0.0.1:5000/team/counter:1")
	if r := clitest.Finish(t, y.cmd("run", "--persist", "127.0.0.1:5000/team/counter:1")); r.Status != 2 || !strings.Contains(r.Err, "stays as it is") {
		t.Errorf("%+v", r)
	}
	if r := clitest.Finish(t, y.cmd("run", "--verify", "mine", "counter")); r.Status != 2 || !strings.Contains(r.Err, `the key "mine" is neither`) {
		t.Errorf("%+v", r)
	}
	y.do("key", "generate", "mine")
	if r := clitest.Finish(t, y.cmd("run", "--verify", "mine", "counter")); r.Status != 2 || !strings.Contains(r.Err, "not signed") {
		t.Errorf("%+v", r)
	}
	y.do("sign", "--key", "mine", "counter")
	if r := clitest.Finish(t, y.cmd("run", "--verify", "mine", "--persist", "counter")); r.Status != 2 || !strings.Contains(r.Err, "stays as it is") {
		t.Errorf("%+v", r)
	}
	if r := clitest.Finish(t, y.cmd("run", "127.0.0.1:5000/team/other")); r.Status != 2 || !strings.Contains(r.Err, "smolvmm images") {
		t.Errorf("%+v", r)
	}
	if r := clitest.Finish(t, y.cmd("run", "nosuch")); r.Status != 2 || !strings.Contains(r.Err, "smolvmm images") {
		t.Errorf("%+v", r)
	}
	y.empty()
}
