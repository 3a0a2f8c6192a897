package pgpool

import (
	"errors"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgtype"
)

// uuidCodec is pgx's codec with support for google's UUID. Without this codec pgx uses
// driver.Valuer and sql.Scanner: pgx formats every id as a string, fails to encode the
// string as binary, and tries again, which took a fifth of the engine's time.
type uuidCodec struct{ pgtype.UUIDCodec }

func registerUUID(types *pgtype.Map) {
	types.RegisterType(&pgtype.Type{Name: "uuid", OID: pgtype.UUIDOID, Codec: uuidCodec{}})
}

// PlanEncode writes a uuid.UUID as sixteen bytes.
func (c uuidCodec) PlanEncode(m *pgtype.Map, oid uint32, format int16, value any) pgtype.EncodePlan {
	if _, ok := value.(uuid.UUID); ok && format == pgtype.BinaryFormatCode {
		return writeUUID{}
	}
	return c.UUIDCodec.PlanEncode(m, oid, format, value)
}

// PlanScan reads sixteen bytes into a uuid.UUID.
func (c uuidCodec) PlanScan(m *pgtype.Map, oid uint32, format int16, target any) pgtype.ScanPlan {
	if _, ok := target.(*uuid.UUID); ok && format == pgtype.BinaryFormatCode {
		return readUUID{}
	}
	return c.UUIDCodec.PlanScan(m, oid, format, target)
}

type writeUUID struct{}

func (writeUUID) Encode(value any, buf []byte) ([]byte, error) {
	id := value.(uuid.UUID)
	return append(buf, id[:]...), nil
}

type readUUID struct{}

func (readUUID) Scan(src []byte, target any) error {
	if len(src) != len(uuid.UUID{}) {
		return errors.New("cannot read NULL, or a value of other than sixteen bytes, into a UUID")
	}

	copy(target.(*uuid.UUID)[:], src)
	return nil
}
