package feed

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"gantry.dev/gantry/internal/network/dns"
	"gantry.dev/gantry/internal/network/gateway"
)

// Version is the protocol's. Sides that differ do not talk; gantry then replaces the edge.
const Version = 1

// MaxFrame bounds one frame's payload in bytes.
const MaxFrame = 64 << 20

// Kind says what a frame is.
type Kind byte

// The kinds of frames.
const (
	KindHello    Kind = 'H' // edge: Hello, first on each connection
	KindTable    Kind = 'T' // client: Table, replaces all
	KindDelta    Kind = 'D' // client: Delta, on top of the table
	KindStats    Kind = 'S' // client: empty; edge: Stats
	KindStop     Kind = 'X' // client: empty; the edge acknowledges and ends
	KindTakeover Kind = 'O' // a newer edge: empty; edge: Sockets, with the sockets attached
	KindReady    Kind = 'R' // the newer edge: it serves now; the edge drains and ends
	KindSockets  Kind = 'F'
	KindAck      Kind = 'A' // edge: Ack
	KindQuery    Kind = 'Q' // client: gateway.Query; edge: KindAnswer
	KindAnswer   Kind = 'W' // edge: gateway.Answer
	KindEvents   Kind = 'E' // client: empty; from now on the edge sends KindEvent on this connection, and nothing else is asked on it
	KindEvent    Kind = 'V' // edge: gateway.Event
)

// Hello says who answers.
type Hello struct {
	Version    int    `json:"version"`
	PID        int    `json:"pid"`
	Build      string `json:"build"`      // what the edge was started as, usually its file's hash
	Generation uint64 `json:"generation"` // of the last table or delta it has
}

// Table is everything the edge serves.
type Table struct {
	Generation uint64         `json:"generation"`
	DNS        dns.Table      `json:"dns"`
	Gateway    *gateway.Table `json:"gateway,omitempty"` // nil: no gateway
}

// Delta replaces single sets of records; an empty one is removed.
type Delta struct {
	Generation uint64                  `json:"generation"`
	DNS        map[string][]dns.Record `json:"dns,omitempty"`
	Gateway    *gateway.Delta          `json:"gateway,omitempty"`
}

// Ack ends a request. With an error nothing was changed.
type Ack struct {
	Generation uint64 `json:"generation"`
	Error      string `json:"error,omitempty"`
}

// Stats are the edge's counters.
type Stats struct {
	Hello
	DNS     dns.Counters `json:"dns"`
	Sets    int          `json:"sets"`
	RSSKiB  int64        `json:"rssKiB"`
	Uptime  float64      `json:"uptimeSeconds"`
	Listens []string     `json:"listens"`
}

// Sockets names the attached sockets in order: "control", "udp ADDR:PORT", "tcp ADDR:PORT".
type Sockets struct {
	Names []string `json:"names"`
}

// ErrFrame says that the peer does not speak this language.
var ErrFrame = errors.New("feed: bad frame")

// Encode returns a frame; body may be nil.
func Encode(kind Kind, body any) ([]byte, error) {
	out := make([]byte, 5)
	if body != nil {
		payload, err := json.Marshal(body)
		if err != nil {
			return nil, fmt.Errorf("encoding frame %c: %w", kind, err)
		}
		out = append(out, payload...)
	}
	if len(out)-5 > MaxFrame {
		return nil, fmt.Errorf("encoding frame %c: %d bytes, at most %d", kind, len(out)-5, MaxFrame)
	}
	binary.BigEndian.PutUint32(out, uint32(len(out)-5))
	out[4] = byte(kind)
	return out, nil
}

// Write sends a frame in one write.
func Write(w io.Writer, kind Kind, body any) error {
	frame, err := Encode(kind, body)
	if err != nil {
		return err
	}
	if _, err := w.Write(frame); err != nil {
		return fmt.Errorf("sending frame %c: %w", kind, err)
	}
	return nil
}

// Read receives a frame. io.EOF means that the peer hung up between frames. Memory grows with
// what arrives, not with what the length promises.
func Read(r io.Reader) (Kind, []byte, error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		if err == io.EOF {
			return 0, nil, io.EOF
		}
		return 0, nil, fmt.Errorf("receiving a frame: %w", err)
	}
	length := int64(binary.BigEndian.Uint32(head[:]))
	if length > MaxFrame {
		return 0, nil, fmt.Errorf("%w: %d bytes, at most %d", ErrFrame, length, MaxFrame)
	}
	payload, err := io.ReadAll(io.LimitReader(r, length))
	if err == nil && int64(len(payload)) < length {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return 0, nil, fmt.Errorf("receiving a frame: %w", err)
	}
	return Kind(head[4]), payload, nil
}

// Decode reads a frame's payload into body.
func Decode(payload []byte, body any) error {
	if err := json.Unmarshal(payload, body); err != nil {
		return fmt.Errorf("%w: %v", ErrFrame, err)
	}
	return nil
}

// Expect receives a frame of one kind into body. An Ack that carries an error is that error.
func Expect(r io.Reader, kind Kind, body any) error {
	got, payload, err := Read(r)
	if err != nil {
		return err
	}
	if got == KindAck && kind != KindAck {
		var ack Ack
		if err := Decode(payload, &ack); err != nil {
			return err
		}
		return fmt.Errorf("the edge refuses: %s", ack.Error)
	}
	if got != kind {
		return fmt.Errorf("%w: kind %c, want %c", ErrFrame, got, kind)
	}
	if err := Decode(payload, body); err != nil {
		return err
	}
	if ack, ok := body.(*Ack); ok && ack.Error != "" {
		return fmt.Errorf("the edge refuses: %s", ack.Error)
	}
	return nil
}
