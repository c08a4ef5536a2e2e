package machines

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"time"
)

// Kinds of events that commands write into a machine's audit log, besides those
// of package audit that the machine's process writes.
const (
	AuditStop   = "machine-stop"
	AuditKill   = "machine-kill"
	AuditRemove = "machine-removed"
	AuditExec   = "exec"
	AuditCopy   = "copy"
)

// auditLine is package audit's Event, as far as commands write it.
type auditLine struct {
	Time    time.Time `json:"time"`
	Event   string    `json:"event"`
	Machine string    `json:"machine"`
	Reason  string    `json:"reason,omitempty"`
}

// AuditLog is the file that machines write who have none of their own.
func (s *Store) AuditLog() string { return s.audit }

// maxReason bounds a reason, in bytes, as package audit does.
const maxReason = 512

// Audit appends a line about a machine to its audit log: one write, so that lines
// of several processes do not mix.
func (s *Store) Audit(m *Machine, event, reason string) error {
	path := m.Spec.Audit
	if path == "" {
		path = s.audit
	}
	reason = fmt.Sprintf("user %d: %s", os.Getuid(), reason)
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(auditLine{time.Now(), event, m.Spec.Name, reason[:min(len(reason), maxReason)]}); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("the audit log: %w", err)
	}
	_, err = f.Write(b.Bytes())
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}
