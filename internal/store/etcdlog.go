package store

import (
	"context"
	"log/slog"

	"go.uber.org/zap/zapcore"
)

type zapLevel = zapcore.Level

// slogCore sends etcd's log to a slog.Logger.
type slogCore struct{ logger *slog.Logger }

// Enabled refuses etcd's debug level, which shows the values that are written.
func (c slogCore) Enabled(level zapcore.Level) bool {
	return level >= zapcore.InfoLevel && c.logger.Enabled(context.Background(), slogLevel(level))
}

func (c slogCore) With(fields []zapcore.Field) zapcore.Core {
	return slogCore{slog.New(c.logger.Handler().WithAttrs(attrs(fields)))}
}

func (c slogCore) Check(entry zapcore.Entry, checked *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(entry.Level) {
		return checked.AddCore(entry, c)
	}
	return checked
}

func (c slogCore) Write(entry zapcore.Entry, fields []zapcore.Field) error {
	level := slogLevel(entry.Level)
	if isHarmless(entry.Message) {
		level = slog.LevelDebug
	}
	c.logger.LogAttrs(context.Background(), level, "etcd", append(attrs(fields), slog.String("message", entry.Message))...)
	return nil
}

func (c slogCore) Sync() error { return nil }

// isHarmless knows what etcd complains of in every new data dir until its first snapshot.
func isHarmless(message string) bool {
	return message == "Failed to detect schema version" || message == "failed to update storage version"
}

func attrs(fields []zapcore.Field) []slog.Attr {
	encoder := zapcore.NewMapObjectEncoder()
	for _, f := range fields {
		f.AddTo(encoder)
	}
	out := make([]slog.Attr, 0, len(encoder.Fields))
	for key, value := range encoder.Fields {
		out = append(out, slog.Any(key, value))
	}
	return out
}
