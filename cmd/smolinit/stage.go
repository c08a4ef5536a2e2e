package main

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
)

// Where files and secrets go by default; both on a tmpfs at runDir.
const (
	runDir     = "/run"
	filesDir   = "/run/smolvmm/files"
	secretsDir = "/run/secrets"
)

// stager writes files and secrets. root is in front of every path ("" but in
// tests).
type stager struct {
	root     string
	uid, gid uint32
	// memory tells whether a directory is on a file system in memory.
	memory func(dir string) (bool, string, error)
	chown  func(f *os.File, uid, gid int) error
}

// stage writes every file and secret of it to its place, and adds the secrets
// that are wanted in the environment to c.Env. The values are wiped.
func (s *stager) stage(c *Config, it *items) error {
	for _, name := range slices.Sorted(maps.Keys(it.files)) {
		p := c.Files[name]
		if p.Path == "" {
			p.Path = filesDir + "/" + name
		}
		if p.Mode == 0 {
			p.Mode = 0o644
		}
		if err := s.write(p, it.files[name]); err != nil {
			return fmt.Errorf("file %s: %w", name, err)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(it.secrets)) {
		p, value := c.Secrets[name], it.secrets[name]
		if p.Env != "" {
			if err := checkVariable(p.Env, string(value)); err != nil {
				return fmt.Errorf("secret %s: %w", name, err)
			}
			if c.Env == nil {
				c.Env = map[string]string{}
			}
			c.Env[p.Env] = string(value)
			clear(value)
			continue
		}
		if p.Path == "" {
			p.Path = secretsDir + "/" + name
		}
		if p.Mode == 0 {
			p.Mode = 0o400
		}
		if err := os.MkdirAll(s.root+filepath.Dir(p.Path), 0o755); err != nil {
			return fmt.Errorf("secret %s: %w", name, err)
		}
		switch in, kind, err := s.memory(s.root + filepath.Dir(p.Path)); {
		case err != nil:
			return fmt.Errorf("secret %s: %w", name, err)
		case !in:
			return fmt.Errorf("secret %s: %s is on %s, a disk; secrets are kept in memory only", name, p.Path, kind)
		}
		if err := s.write(p, value); err != nil {
			return fmt.Errorf("secret %s: %w", name, err)
		}
	}
	for name := range c.Files {
		if _, ok := it.files[name]; !ok {
			return fmt.Errorf("file %s: the configuration gives it a place, but the host gave no such file (-E %s=FILE)", name, name)
		}
	}
	for name := range c.Secrets {
		if _, ok := it.secrets[name]; !ok {
			return fmt.Errorf("secret %s: the configuration gives it a place, but the host gave no such secret (--secret)", name)
		}
	}
	return nil
}

// write makes the file anew with its final owner and mode before the first byte
// is in it, so that no one reads it through an older, wider one.
func (s *stager) write(p Place, value []byte) error {
	defer clear(value)
	uid, gid := s.uid, s.gid
	if p.UID != nil {
		uid = *p.UID
	}
	if p.GID != nil {
		gid = *p.GID
	}
	path := s.root + p.Path
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	err = errors.Join(s.chown(f, int(uid), int(gid)), chmod(f, p.Mode))
	if err == nil {
		_, err = f.Write(value)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		os.Remove(path)
	}
	return err
}

func chmod(f *os.File, m Mode) error {
	mode := fs.FileMode(m & 0o777)
	for bit, flag := range map[Mode]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if m&bit != 0 {
			mode |= flag
		}
	}
	return f.Chmod(mode)
}
