package main

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// unpackOut writes what comes back. The guest may name only what was asked for and what is below it.
func unpackOut(r io.Reader, outs []outPath) error {
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if err == io.EOF {
			_, err := io.Copy(io.Discard, r)
			return err
		}
		if err != nil {
			return err
		}
		host, err := hostPath(h.Name, outs)
		if err != nil {
			return err
		}
		if h.Typeflag == tar.TypeDir {
			if err := os.MkdirAll(host, 0o755); err != nil {
				return err
			}
			continue
		}
		if h.Typeflag != tar.TypeReg {
			return fmt.Errorf("%s is neither a file nor a folder", h.Name)
		}
		if err := os.MkdirAll(filepath.Dir(host), 0o755); err != nil {
			return err
		}
		f, err := os.OpenFile(host, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o644)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, tr)
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
}

func hostPath(guest string, outs []outPath) (string, error) {
	p := filepath.Clean(guest)
	for _, o := range outs {
		if p == o.guest {
			return o.host, nil
		}
		if rel, ok := strings.CutPrefix(p, o.guest+"/"); ok && filepath.IsLocal(rel) {
			return filepath.Join(o.host, rel), nil
		}
	}
	return "", fmt.Errorf("the guest sent %q, which was not asked for", guest)
}
