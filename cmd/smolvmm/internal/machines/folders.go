package machines

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// Open finds the user's folders by the XDG Base Directory Specification 0.8, and
// makes what is missing of them, for this user alone. env is the environment.
//
// The data folder is $XDG_DATA_HOME/smolvmm, or ~/.local/share/smolvmm. The
// runtime folder is $XDG_RUNTIME_DIR/smolvmm; where the variable is not set or
// names a folder that is not this user's alone, as after su, it is
// /run/user/UID/smolvmm, and where that is not to be had /tmp/smolvmm-UID.
func Open(env func(string) (string, bool)) (*Store, error) {
	data, err := DataFolder(env)
	if err != nil {
		return nil, err
	}
	run, err := runtimeFolder(env)
	if err != nil {
		return nil, err
	}
	s := At(filepath.Join(data, "machines"), filepath.Join(run, "machines"))
	for _, dir := range []string{s.data, s.run} {
		if err := ownFolder(dir); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// At is the store in folders that Open has found, as Folders gives them.
func At(data, run string) *Store {
	return &Store{data: data, run: run, audit: filepath.Join(filepath.Dir(data), "audit.log")}
}

// Folders are where machines are: what lasts, and sockets.
func (s *Store) Folders() (data, run string) { return s.data, s.run }

// DataFolder gives the user's folder for what lasts, and makes it.
func DataFolder(env func(string) (string, bool)) (string, error) {
	base, _ := env("XDG_DATA_HOME")
	if !filepath.IsAbs(base) { // relative ones are to be ignored
		home, _ := env("HOME")
		if !filepath.IsAbs(home) {
			return "", errors.New("there is no place for machines: set HOME or XDG_DATA_HOME to a folder")
		}
		base = filepath.Join(home, ".local", "share")
	}
	dir := filepath.Join(base, "smolvmm")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("a place for machines: %w", err)
	}
	// A link there is the user's own way to another disk: its target counts.
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return "", fmt.Errorf("%s: %w", dir, err)
	}
	if int(st.Uid) != os.Geteuid() || st.Mode&0o022 != 0 {
		return "", fmt.Errorf("%s: others may write there, or it is not yours: chown it, and chmod go-w", dir)
	}
	return dir, nil
}

// runtimeFolder gives the user's folder for sockets, and makes it.
func runtimeFolder(env func(string) (string, bool)) (string, error) {
	uid := strconv.Itoa(os.Geteuid())
	given, _ := env("XDG_RUNTIME_DIR")
	for _, base := range []string{given, filepath.Join("/run/user", uid)} {
		if filepath.IsAbs(base) && private(base) == nil {
			dir := filepath.Join(base, "smolvmm")
			return dir, ownFolder(dir)
		}
	}
	// In a folder that everybody can write to the name may be somebody else's
	// already: then there is no machine.
	dir := filepath.Join("/tmp", "smolvmm-"+uid)
	return dir, ownFolder(dir)
}

// ownFolder makes a folder for this user alone, or checks that it is one: no
// link, no other's, nothing that others can look into.
func ownFolder(dir string) error {
	if err := os.Mkdir(dir, 0o700); err == nil {
		return nil
	} else if !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("a folder for machines: %w", err)
	}
	return private(dir)
}

func private(dir string) error {
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return fmt.Errorf("%s: not a folder but a link or file: remove it", dir)
	case int(st.Uid) != os.Geteuid():
		return fmt.Errorf("%s: it belongs to user %d: remove it, or set XDG_RUNTIME_DIR and XDG_DATA_HOME to folders of your own", dir, st.Uid)
	case st.Mode&0o077 != 0:
		return fmt.Errorf("%s: others can get in: chmod 700 it", dir)
	}
	return nil
}
