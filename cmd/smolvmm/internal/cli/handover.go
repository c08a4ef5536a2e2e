package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"syscall"
)

// fullName is the file name of the full program.
const fullName = "smolvmm-full"

// installBoth is how both programs come to be in one folder.
const installBoth = "go install github.com/smolvmm/smolvmm/cmd/smolvmm/...@latest"

// handOver turns this process into the full program, which has what smolvmm leaves
// out. It returns only if it cannot.
func handOver(what string, args []string) error {
	self, err := ownFile()
	if err != nil {
		return fmt.Errorf("%s: where this program is cannot be told: %w", what, err)
	}
	path, err := findFull(self, exec.LookPath)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	env := append(os.Environ(), handoverVar+"="+VersionOf(debug.ReadBuildInfo()))
	err = syscall.Exec(path, append([]string{os.Args[0]}, args...), env)
	return fmt.Errorf("%s: %s cannot be run: %w", what, path, err)
}

// ownFile is where this program is, whatever links lead to it.
func ownFile() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	return filepath.EvalSymlinks(self)
}

// ownFull is where the full program is, which may be this one.
func ownFull() (string, error) {
	self, err := ownFile()
	if err != nil || filepath.Base(self) == fullName {
		return self, err
	}
	return findFull(self, exec.LookPath)
}

// handoverVar tells the full program the version of the one that became it.
const handoverVar = "SMOLVMM_HANDOVER"

// handedOver refuses to go on from a program of another version, whose flags and
// files might mean other things. own is this program's version. One that Go did not
// record, as in `go run`, cannot be told from another.
func handedOver(own func() string) error {
	from, ok := os.LookupEnv(handoverVar)
	if !ok {
		return nil
	}
	_ = os.Unsetenv(handoverVar) // what this process starts is no handover
	if v := own(); v != from && v != devel && from != devel {
		return fmt.Errorf("smolvmm is %s and %s is %s: install both at once: %s", from, fullName, v, installBoth)
	}
	return nil
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
