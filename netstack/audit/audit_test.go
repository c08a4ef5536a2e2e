package audit

import (
	"bytes"
	"encoding/json"
	"testing"
)

// events reads lines back.
func events(t *testing.T, b []byte) []Event {
	t.Helper()
	var out []Event
	for l := range bytes.Lines(b) {
		var e Event
		if err := json.Unmarshal(l, &e); err != nil {
			t.Fatalf("%q: %v", l, err)
		}
		out = append(out, e)
	}
	return out
}

func TestLinesReadBack(t *testing.T) {
	var buf bytes.Buffer
	w := NewWriter(&buf, "web")
	w.Emit(Event{Event: MachineCreated})
	denied := Event{Event: EgressDenied, Name: "evil.test", Address: "192.0.2.1", Port: 443, Proto: "tcp", Reason: "deny-all"}
	for range 100 {
		w.Emit(denied)
	}
	w.Emit(Event{Event: MachineEnded, Reason: "exit 0"})
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	got := events(t, buf.Bytes())
	if len(got) != 4 || got[0].Event != MachineCreated || got[1].Name != "evil.test" || got[2].Event != MachineEnded || got[3].Count != 99 {
		t.Fatalf("%s", buf.Bytes())
	}
	for _, e := range got {
		if e.Machine != "web" || e.Time.IsZero() {
			t.Errorf("%+v", e)
		}
	}
}
