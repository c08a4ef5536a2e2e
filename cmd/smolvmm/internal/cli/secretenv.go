package cli

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"
	"strings"
)

// hideSecrets takes secrets that came by the environment out of what
// /proc/PID/environ and `ps e` show of this process.
func (b *BootFlags) hideSecrets(log *slog.Logger) {
	var names []string
	for _, s := range b.Secrets {
		if name, _, has := strings.Cut(s, "="); !has {
			names = append(names, name)
			_ = os.Unsetenv(name)
		}
	}
	if len(names) == 0 {
		return
	}
	if err := blankEnvironment(names); err != nil {
		log.Warn("a secret can still be read in this process's environment, by its user and root", "err", err)
	}
}

// maxEnvironment bounds what is read of it, in bytes; execve(2) bounds it too.
const maxEnvironment = 8 << 20

// blankEnvironment overwrites the values of variables where the kernel put
// them at the process's start, which is what /proc/PID/environ reads. Package
// os works on copies and leaves that place alone.
func blankEnvironment(names []string) error {
	start, end, err := environment()
	if err != nil {
		return err
	}
	mem, err := os.OpenFile("/proc/self/mem", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer mem.Close()
	block := make([]byte, end-start)
	defer clear(block)
	if _, err := io.ReadFull(io.NewSectionReader(mem, start, end-start), block); err != nil {
		return err
	}
	for at := 0; at < len(block); {
		n := bytes.IndexByte(block[at:], 0)
		if n < 0 {
			n = len(block) - at
		}
		name, value, ok := strings.Cut(string(block[at:at+n]), "=")
		for _, want := range names {
			if ok && name == want {
				if _, err := mem.WriteAt(make([]byte, len(value)), start+int64(at+len(name)+1)); err != nil {
					return err
				}
			}
		}
		at += n + 1
	}
	return nil
}

// environment gives where the process's first environment lies: env_start and
// env_end of proc_pid_stat(5).
func environment() (start, end int64, err error) {
	b, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		return 0, 0, err
	}
	// The second field is in parentheses and may hold anything.
	i := bytes.LastIndexByte(b, ')')
	fields := strings.Fields(string(b[i+1:]))
	const envStart, third = 50, 3
	if i < 0 || len(fields) < envStart+2-third {
		return 0, 0, errors.New("/proc/self/stat is too short")
	}
	start, err1 := strconv.ParseInt(fields[envStart-third], 10, 64)
	end, err2 := strconv.ParseInt(fields[envStart+1-third], 10, 64)
	if err := errors.Join(err1, err2); err != nil {
		return 0, 0, err
	}
	if start <= 0 || end < start || end-start > maxEnvironment {
		return 0, 0, fmt.Errorf("/proc/self/stat: environment at %#x to %#x", start, end)
	}
	return start, end, nil
}
