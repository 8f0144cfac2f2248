// The test records of swarm_records.py, made and checked by another implementation.
import { createHash, createPublicKey, generateKeyPairSync, sign, verify } from 'node:crypto'

const text = (bytes) => new TextDecoder().decode(bytes)
const message = ({ sequence, expires, body }) => Buffer.from(`${sequence}|${expires}|${body}`)
const keyOf = (point) => `ncn/node/${createHash('sha256').update(point).digest().subarray(0, 20).toString('hex')}`

export class Owner {
  constructor () {
    const { publicKey, privateKey } = generateKeyPairSync('ec', { namedCurve: 'secp256k1' })
    const { x, y } = publicKey.export({ format: 'jwk' })
    this.privateKey = privateKey
    this.point = Buffer.concat([Buffer.of(4), Buffer.from(x, 'base64url'), Buffer.from(y, 'base64url')])
    this.key = keyOf(this.point)
  }

  record (sequence, body) {
    const fields = { sequence, expires: Math.floor(Date.now() / 1000) + 3600, body }
    const signature = sign('sha256', message(fields), this.privateKey).toString('hex')
    return Buffer.from(JSON.stringify({ ...fields, point: this.point.toString('hex'), signature }))
  }
}

/** Return a good record's sequence; throw where it is not good. */
export function check (key, value) {
  const record = JSON.parse(text(value))
  const point = Buffer.from(record.point, 'hex')
  const jwk = {
    kty: 'EC',
    crv: 'secp256k1',
    x: point.subarray(1, 33).toString('base64url'),
    y: point.subarray(33).toString('base64url')
  }
  const good = text(key) === `/${keyOf(point)}` && record.expires >= Date.now() / 1000 &&
    verify('sha256', message(record), createPublicKey({ key: jwk, format: 'jwk' }), Buffer.from(record.signature, 'hex'))
  if (!good) {
    throw new Error('the record is forged, expired or of another key')
  }
  return record.sequence
}
