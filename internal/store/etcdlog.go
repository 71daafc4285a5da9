package store

import (
	"context"
	"log/slog"

	"go.uber.org/zap/zapcore"
)

type zapLevel = zapcore.Level

// slogCore sends etcd's log to a slog.Logger.
type slogCore struct{ logger *slog.Logger }

func (c slogCore) Enabled(level zapcore.Level) bool {
	return c.logger.Enabled(context.Background(), slogLevel(level))
}

func (c slogCore) With(fields []zapcore.Field) zapcore.Core {
	return slogCore{c.logger.With(attrs(fields)...)}
}

func (c slogCore) Check(entry zapcore.Entry, checked *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(entry.Level) {
		return checked.AddCore(entry, c)
	}
	return checked
}

func (c slogCore) Write(entry zapcore.Entry, fields []zapcore.Field) error {
	c.logger.Log(context.Background(), slogLevel(entry.Level), "etcd: "+entry.Message, attrs(fields)...)
	return nil
}

func (c slogCore) Sync() error { return nil }

func attrs(fields []zapcore.Field) []any {
	encoder := zapcore.NewMapObjectEncoder()
	for _, f := range fields {
		f.AddTo(encoder)
	}
	out := make([]any, 0, len(encoder.Fields))
	for key, value := range encoder.Fields {
		out = append(out, slog.Any(key, value))
	}
	return out
}
