// Sound from the microphone as a WAV of the length and rate that the model takes.

const LEAD_S = 1.5; // pause between the click and speech

export class Recorder {
  constructor(stream, modality, done) {
    this.modality = modality;
    this.stream = stream;
    this.recorder = new MediaRecorder(stream);
    const chunks = [];
    this.recorder.ondataavailable = (event) => chunks.push(event.data);
    this.recorder.onstop = async () => {
      stream.getTracks().forEach((track) => track.stop());
      clearTimeout(this.timer);
      done(await wav(new Blob(chunks), modality));
    };
    this.recorder.start();
    this.timer = setTimeout(() => this.stop(), 1000 * (LEAD_S + modality.max_duration_s));
  }

  static async start(modality, done) {
    const stream = await navigator.mediaDevices.getUserMedia({ audio: true });
    return new Recorder(stream, modality, done);
  }

  stop() {
    if (this.recorder.state !== "inactive") this.recorder.stop();
  }
}

// 16-bit mono WAV at the model's rate of anything that the browser decodes: the loudest part of the model's length.
async function wav(blob, { sample_rate_hz, max_duration_s }) {
  const context = new OfflineAudioContext(1, 1, sample_rate_hz);
  const decoded = await context.decodeAudioData(await blob.arrayBuffer());
  const offline = new OfflineAudioContext(1, Math.max(1, Math.ceil(decoded.duration * sample_rate_hz)), sample_rate_hz);
  const source = offline.createBufferSource();
  source.buffer = decoded;
  source.connect(offline.destination);
  source.start();
  const samples = (await offline.startRendering()).getChannelData(0);
  return encode(loudest(samples, Math.round(max_duration_s * sample_rate_hz)), sample_rate_hz);
}

export function loudest(samples, length) {
  if (samples.length <= length) return samples;
  let energy = 0;
  for (let i = 0; i < length; i++) energy += samples[i] ** 2;
  let best = energy, start = 0;
  for (let i = length; i < samples.length; i++) {
    energy += samples[i] ** 2 - samples[i - length] ** 2;
    if (energy > best) [best, start] = [energy, i - length + 1];
  }
  return samples.subarray(start, start + length);
}

function encode(samples, rate_hz) {
  const view = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const write = (offset, text) => [...text].forEach((letter, i) => view.setUint8(offset + i, letter.charCodeAt(0)));
  write(0, "RIFF");
  view.setUint32(4, 36 + 2 * samples.length, true);
  write(8, "WAVEfmt ");
  view.setUint32(16, 16, true);
  view.setUint16(20, 1, true); // PCM
  view.setUint16(22, 1, true); // mono
  view.setUint32(24, rate_hz, true);
  view.setUint32(28, 2 * rate_hz, true);
  view.setUint16(32, 2, true);
  view.setUint16(34, 16, true);
  write(36, "data");
  view.setUint32(40, 2 * samples.length, true);
  samples.forEach((sample, i) => view.setInt16(44 + 2 * i, 32767 * Math.max(-1, Math.min(1, sample)), true));
  return new Blob([view.buffer], { type: "audio/wav" });
}
