package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
)

// fullName is the file name of the full program.
const fullName = "smolvmm-full"

// installBoth is how both programs come to be in one folder.
const installBoth = "go install github.com/smolvmm/smolvmm/cmd/smolvmm/...@latest"

// handOver turns this process into the full program, which has what smolvmm leaves
// out. It returns only if it cannot.
func handOver(what string, args []string) error {
	self, err := os.Executable()
	if err == nil {
		self, err = filepath.EvalSymlinks(self)
	}
	if err != nil {
		return fmt.Errorf("%s: where this program is cannot be told: %w", what, err)
	}
	path, err := findFull(self, exec.LookPath)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	err = syscall.Exec(path, append([]string{os.Args[0]}, args...), os.Environ())
	return fmt.Errorf("%s: %s cannot be run: %w", what, path, err)
}

// findFull finds the full program beside this one, else in PATH.
func findFull(self string, look func(string) (string, error)) (string, error) {
	path := filepath.Join(filepath.Dir(self), fullName)
	st, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		if path, err = look(fullName); err == nil {
			st, err = os.Stat(path)
		}
	}
	if err != nil {
		return "", fmt.Errorf("this is in %s, which is neither in %s nor in PATH: %s", fullName, filepath.Dir(self), installBoth)
	}
	// One that is this program under its name would hand over to itself for ever.
	if own, err := os.Stat(self); err == nil && os.SameFile(own, st) {
		return "", fmt.Errorf("%s is smolvmm itself, not the full program: %s", path, installBoth)
	}
	return path, nil
}
