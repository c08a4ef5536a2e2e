package api

import (
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/smolvmm/smolvmm/vmm/client"
)

type openAPIDoc struct {
	Paths map[string]map[string]struct {
		OperationID string `json:"operationId"`
		Refused     bool   `json:"x-refused"`
		RequestBody *struct {
			Content map[string]struct {
				Schema struct {
					Ref string `json:"$ref"`
				} `json:"schema"`
				Example json.RawMessage `json:"example"`
			} `json:"content"`
		} `json:"requestBody"`
		Parameters []struct{ Name, In string } `json:"parameters"`
		Responses  map[string]any              `json:"responses"`
	} `json:"paths"`
	Components struct {
		Schemas map[string]struct {
			Required   []string                   `json:"required"`
			Properties map[string]json.RawMessage `json:"properties"`
		} `json:"schemas"`
	} `json:"components"`
}

func openAPIOf(t *testing.T) (d openAPIDoc) {
	t.Helper()
	if err := json.Unmarshal([]byte(openAPIFile), &d); err != nil {
		t.Fatal(err)
	}
	return d
}

// Every handler is in the file, and everything in the file has a handler.
func TestOpenAPIIsTheHandlers(t *testing.T) {
	d := openAPIOf(t)
	have := map[string]bool{}
	for _, r := range routes() {
		key := r.method + " " + r.path
		if have[key] {
			t.Errorf("%s: two handlers", key)
		}
		have[key] = true
		if _, ok := d.Paths[r.path][strings.ToLower(r.method)]; !ok {
			t.Errorf("%s has a handler and is not in openapi.json", key)
		}
	}
	ids := map[string]bool{}
	for path, methods := range d.Paths {
		for method, op := range methods {
			key := strings.ToUpper(method) + " " + path
			if !have[key] {
				t.Errorf("%s is in openapi.json and has no handler", key)
			}
			if op.OperationID == "" || ids[op.OperationID] {
				t.Errorf("%s: operationId %q is empty or taken", key, op.OperationID)
			}
			ids[op.OperationID] = true
			if strings.Contains(path, "{id}") != slices.ContainsFunc(op.Parameters, func(p struct{ Name, In string }) bool { return p.Name == "id" && p.In == "path" }) {
				t.Errorf("%s: the parameter id is not where the path has it", key)
			}
		}
	}
}

// What the file calls refused is refused, and nothing else is; its examples are
// taken, or refused for what they name.
func TestOpenAPIExamples(t *testing.T) {
	for path, methods := range openAPIOf(t).Paths {
		for method, op := range methods {
			if path == "/smolvmm/events" {
				continue // it does not end
			}
			_, socket := serve(t, Config{})
			body := ""
			if op.RequestBody != nil {
				body = string(op.RequestBody.Content["application/json"].Example)
				if body == "" {
					t.Errorf("%s %s: its body has no example", method, path)
				}
			}
			var named struct {
				Drive string `json:"drive_id"`
				Iface string `json:"iface_id"`
			}
			_ = json.Unmarshal([]byte(body), &named)
			url := strings.ReplaceAll(path, "{id}", named.Drive+named.Iface+map[bool]string{true: "x"}[named.Drive+named.Iface == ""])
			status, answer := ask(t, socket, strings.ToUpper(method), url, body)
			refusal := status == 400 && strings.Contains(answer, "smolvmm")
			if op.Refused != refusal {
				t.Errorf("%s %s: refused %v in openapi.json, answered %d %s", method, path, op.Refused, status, answer)
			}
			for _, wrong := range []string{"deserializing", "Empty", "Invalid request"} {
				if !op.Refused && strings.Contains(answer, wrong) {
					t.Errorf("%s %s %s: the example is %s", method, path, body, answer)
				}
			}
			if _, ok := op.Responses[itoa(status)]; !ok && op.Responses["default"] == nil {
				t.Errorf("%s %s: %d is no answer that openapi.json has", method, path, status)
			}
		}
	}
}

// Schemas have the fields of the structs.
func TestOpenAPISchemas(t *testing.T) {
	schemas := openAPIOf(t).Components.Schemas
	for name, v := range map[string]any{
		"BootSource": BootSource{}, "MachineConfig": MachineConfig{}, "MachineConfigPatch": MachineConfig{}, "Drive": Drive{}, "DrivePatch": DrivePatch{},
		"NetworkInterface": NetworkInterface{}, "NetworkInterfacePatch": NetworkPatch{}, "RateLimiter": RateLimiter{}, "TokenBucket": TokenBucket{},
		"Vsock": Vsock{}, "Logger": loggerConfig{}, "Metrics": metricsSink{}, "Stop": stopRequest{}, "Vm": vmState{}, "Action": action{},
		"Info": client.Info{}, "Memory": client.Memory{}, "Port": client.Port{}, "Exit": client.Exit{}, "Egress": client.Egress{}, "Flow": client.Flow{}, "BootOptions": BootOptions{}, "Event": client.Event{},
	} {
		s, ok := schemas[name]
		if !ok {
			t.Errorf("no schema %s", name)
			continue
		}
		fields := fieldsOf(reflect.TypeOf(v))
		for f := range fields {
			if _, ok := s.Properties[f]; !ok {
				t.Errorf("%s.%s is not in openapi.json", name, f)
			}
		}
		for p := range s.Properties {
			if _, ok := fields[p]; !ok {
				t.Errorf("%s.%s of openapi.json is in no struct", name, p)
			}
		}
	}
}
