package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func testStager(t *testing.T, inMemory func(dir string) bool) (*stager, map[string][2]int) {
	owners := map[string][2]int{}
	s := &stager{root: t.TempDir(), uid: 10, gid: 11}
	s.memory = func(dir string) (bool, string, error) {
		return inMemory(strings.TrimPrefix(dir, s.root)), "ext2fs", nil
	}
	s.chown = func(f *os.File, uid, gid int) error {
		owners[strings.TrimPrefix(f.Name(), s.root)] = [2]int{uid, gid}
		return nil
	}
	return s, owners
}

func underRun(dir string) bool { return strings.HasPrefix(dir, "/run") }

func TestStage(t *testing.T) {
	s, owners := testStager(t, underRun)
	root, group := uint32(0), uint32(99)
	c := Config{
		Files:   map[string]Place{"app.conf": {Path: "/etc/app.conf", Mode: 0o640, UID: &root, GID: &group}},
		Secrets: map[string]Place{"pass": {Env: "PASS"}, "key": {Path: "/run/app/key"}},
	}
	it := &items{
		files:   map[string][]byte{"app.conf": []byte("conf"), "plain": []byte("plain")},
		secrets: map[string][]byte{"pass": []byte("p4ss"), "key": []byte("k3y"), "token": []byte("t0ken")},
	}
	// One that is there already, and wider, must not stay.
	if err := os.MkdirAll(s.root+"/run/app", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.root+"/run/app/key", []byte("a longer old one"), 0o666); err != nil {
		t.Fatal(err)
	}
	if err := s.stage(&c, it); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]struct {
		text  string
		mode  os.FileMode
		owner [2]int
	}{
		"/etc/app.conf":            {"conf", 0o640, [2]int{0, 99}},
		"/run/smolvmm/files/plain": {"plain", 0o644, [2]int{10, 11}},
		"/run/app/key":             {"k3y", 0o400, [2]int{10, 11}},
		"/run/secrets/token":       {"t0ken", 0o400, [2]int{10, 11}},
	} {
		got, err := os.ReadFile(s.root + path)
		if err != nil || string(got) != want.text {
			t.Errorf("%s holds %q, %v", path, got, err)
		}
		if st, err := os.Stat(s.root + path); err != nil || st.Mode() != want.mode {
			t.Errorf("%s has mode %v, %v", path, st.Mode(), err)
		}
		if owners[path] != want.owner {
			t.Errorf("%s belongs to %v", path, owners[path])
		}
	}
	if c.Env["PASS"] != "p4ss" {
		t.Errorf("environment %v", c.Env)
	}
	for name, v := range it.secrets {
		if !bytes.Equal(v, make([]byte, len(v))) {
			t.Errorf("the value of %s is still in memory: %q", name, v)
		}
	}
	err := filepath.WalkDir(s.root, func(path string, d os.DirEntry, err error) error {
		if err == nil && strings.Contains(path, "pass") {
			t.Errorf("a secret for the environment has a file %s", path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestStageRefuses(t *testing.T) {
	s, _ := testStager(t, underRun)
	onDisk := Config{Secrets: map[string]Place{"key": {Path: "/etc/key"}}}
	err := s.stage(&onDisk, &items{secrets: map[string][]byte{"key": []byte("k3y")}})
	if err == nil || !strings.Contains(err.Error(), "a disk") {
		t.Errorf("a secret on a disk: %v", err)
	}
	if _, err := os.Stat(s.root + "/etc/key"); err == nil {
		t.Error("the secret is on the disk all the same")
	}
	for _, c := range []Config{
		{Secrets: map[string]Place{"none": {}}},
		{Files: map[string]Place{"none": {Path: "/x"}}},
	} {
		if err := s.stage(&c, &items{}); err == nil || !strings.Contains(err.Error(), "none") {
			t.Errorf("%+v without its item: %v", c, err)
		}
	}
	nul := Config{Secrets: map[string]Place{"x": {Env: "X"}}}
	if err := s.stage(&nul, &items{secrets: map[string][]byte{"x": {0}}}); err == nil || strings.Contains(err.Error(), "\x00") {
		t.Errorf("a NUL in the environment: %v", err)
	}
}
